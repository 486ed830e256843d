"""Text to token ids, by any Hugging Face tokenizer, quickly and exactly.

loading.py                                finds and checks a tokenizer
tokenizer.py                              a loaded one, and its description for workers
files.py, hub.py, json_files.py, gpt2.py  where its files are, and reading them
configuration.py, eos.py                  its rules, as a dict, and which token ends a document
backends.py, splitting.py                 the two libraries that encode, and long texts in pieces
verdicts.py, trial.py, self_check.py, probes.py   whether it can be used, and by which library
"""

from btlm_data.tokenizer.loading import load_tokenizer
from btlm_data.tokenizer.tokenizer import Tokenizer, TokenizerSpec, already_open

__all__ = ["Tokenizer", "TokenizerSpec", "already_open", "load_tokenizer"]
