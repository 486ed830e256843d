"""Text to token ids, by any Hugging Face tokenizer, quickly and exactly."""

from btlm_data.tokenizers.tokenizer import Tokenizer, TokenizerSpec, load_tokenizer

__all__ = ["Tokenizer", "TokenizerSpec", "load_tokenizer"]
