"""Write a made-up tiny Llama, its byte tokenizer and two LoRA adapters. Runs under vLLM's own Python.

    python make_model.py DIRECTORY

The weights do not matter (vLLM fills in random ones with `--load-format dummy`); prefix cache, batching, adapters and metrics
are real. One byte is one token.
"""

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

HIDDEN, HEADS, LAYERS, RANK = 256, 4, 2, 8
ADAPTED = ["q_proj", "v_proj"]
SPECIAL = ["<s>", "</s>"]
TEMPLATE = "{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }}\n{% endfor %}[assistant] "


def tokenizer(directory: Path) -> int:
    """Returns the size of the vocabulary."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: number for number, token in enumerate([*SPECIAL, *alphabet])}
    made = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens(SPECIAL)
    made.save(str(directory / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "chat_template": TEMPLATE,
        "model_max_length": 16384,
    }
    (directory / "tokenizer_config.json").write_text(json.dumps(settings))
    return len(vocabulary)


def model(directory: Path, vocabulary: int) -> None:
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": HIDDEN,
        "intermediate_size": 2 * HIDDEN,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": HEADS,
        "max_position_embeddings": 16384,
        "vocab_size": vocabulary,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "rms_norm_eps": 1e-5,
        "hidden_act": "silu",
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
    }
    (directory / "config.json").write_text(json.dumps(config))


def adapter(directory: Path, seed: int) -> None:
    directory.mkdir()
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": RANK,
        "lora_alpha": RANK,
        "lora_dropout": 0.0,
        "bias": "none",
        "target_modules": ADAPTED,
        "base_model_name_or_path": "base",
    }
    (directory / "adapter_config.json").write_text(json.dumps(config))
    generator = torch.Generator().manual_seed(seed)
    weights = {}
    for layer in range(LAYERS):
        for projection in ADAPTED:
            name = f"base_model.model.model.layers.{layer}.self_attn.{projection}"
            weights[f"{name}.lora_A.weight"] = torch.randn(RANK, HIDDEN, generator=generator).bfloat16()
            weights[f"{name}.lora_B.weight"] = torch.randn(HIDDEN, RANK, generator=generator).bfloat16()
    save_file(weights, str(directory / "adapter_model.safetensors"))


def main() -> None:
    directory = Path(sys.argv[1])
    directory.mkdir(parents=True)
    model(directory, tokenizer(directory))
    adapter(directory / "lora-a", 1)
    adapter(directory / "lora-b", 2)


main()
