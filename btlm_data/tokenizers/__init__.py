"""Text to token ids, by any Hugging Face tokenizer, quickly and exactly.

loading.py         finds and checks a tokenizer                    files.py, hub.py       where its files are
tokenizer.py       a loaded one, and its description for workers   configuration.py       its rules, as a dict
backends.py        the two libraries that encode                   gpt2.py                the one in the package
splitting.py       long texts in pieces                            eos.py                 which token ends a document
verdicts.py, self_check.py, probes.py                              whether a library can be relied on
"""

from btlm_data.tokenizers.loading import load_tokenizer
from btlm_data.tokenizers.tokenizer import Tokenizer, TokenizerSpec

__all__ = ["Tokenizer", "TokenizerSpec", "load_tokenizer"]
