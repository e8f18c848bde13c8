"""The stranger: a process that knows transformers and no Keel, opens a checkpoint, and says what it finds.

Its files import the standard library, torch, transformers and their like alone, and one another by `.name`.
"""
