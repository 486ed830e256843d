"""BTLM: GPT-2 with ALiBi, SwiGLU and muP, trained from btlm-data shards."""
