"""Translation of pairs with teacher forcing (Vaswani 2017): the decoder sees the right target and predicts its next token.

An example is a pair; it lies in one packed row on both sides. What a model writes by itself is judged at evaluations.
"""

from copy import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from modeling import KeelSeq2SeqConfig, KeelSeq2SeqForConditionalGeneration
from pretraining.data import draws
from pretraining.data.pairs import load_pairs
from pretraining.data.parallel import count_processes
from pretraining.data.plan import choose_row_lengths
from pretraining.data.prepare_pairs import PreparedPairs, prepare_pairs
from pretraining.data.rows import IGNORED, Example
from pretraining.data.settings import between
from pretraining.data.tokenizer import build_tokenizer, require_tokens
from pretraining.objectives.seq2seq import Seq2Seq
from pretraining.settings import Settings
