"""A model that the tests of searches share."""

import pytest
import torch
from searches import END, PAD, sentences
from torch import nn

from modeling import KeelSeq2SeqConfig, KeelSeq2SeqForConditionalGeneration

SIZES = {"hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 48, "encoder_layers": 2, "decoder_layers": 2}
IDS = {"vocab_size": 40, "eos_token_id": END, "pad_token_id": PAD, "decoder_start_token_id": PAD}


@pytest.fixture(scope="session")
def lively():
    """`lively(**fields)`: a model in float64 that has learnt a little of copying its source: it varies, and it ends."""
    built: dict[str, KeelSeq2SeqForConditionalGeneration] = {}
    fixed = {"hidden_dropout_prob": 0.0, "max_position_embeddings": 40}

    def build(**fields) -> KeelSeq2SeqForConditionalGeneration:
        if str(fields) not in built:
            torch.manual_seed(0)
            model = KeelSeq2SeqForConditionalGeneration(KeelSeq2SeqConfig(**{**SIZES, **IDS, **fixed, **fields}))
            optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
            for _ in range(120):
                batch = sentences(32)
                labels = batch["input_ids"].where(batch["attention_mask"] == 1, -100)
                labels = nn.functional.pad(labels, (0, 1), value=-100)
                labels[torch.arange(32), batch["attention_mask"].sum(1)] = END
                model(**batch, labels=labels).loss.backward()
                optimizer.step()
                optimizer.zero_grad()
            built[str(fields)] = model.double().eval()
        return built[str(fields)]

    return build
