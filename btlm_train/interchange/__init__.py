"""Checkpoints to and from other programs.

names        tensor names and layouts       huggingface   config.json
tensor_files tensors from files             modelzoo      params.yaml
importing    everything checked             exporting     everything written
gguf_file    one file for llama.cpp
remote_code  what transformers runs to load an exported folder
"""

from btlm_train.interchange.exporting import export
from btlm_train.interchange.importing import check_weights, read_weights

__all__ = ["check_weights", "export", "read_weights"]
