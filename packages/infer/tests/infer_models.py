"""Tiny Hugging Face models with random weights, every family of the registry and what its settings can be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from jumar.schema.registry import families

LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 24,
}
YARN = {"rope_type": "yarn", "rope_theta": 100.0, "factor": 4.0, "original_max_position_embeddings": 24}
GROUPS = {"n_group": 4, "topk_group": 2, "num_experts_per_tok": 2}

VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama3 rope": ("llama", {"rope_parameters": LLAMA3}),
    "linear rope": ("llama", {"rope_parameters": {"rope_type": "linear", "rope_theta": 100.0, "factor": 3.0}}),
    "dynamic rope": (
        "llama",
        {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 100.0, "factor": 4.0}, "max_position_embeddings": 32},
    ),
    "yarn rope": ("qwen2", {"rope_parameters": YARN}),
    "yarn in latent attention": ("deepseek_v3", {"rope_parameters": YARN | {"mscale": 0.707, "mscale_all_dim": 0.5}}),
    "sliding layers": ("qwen2", {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 2}),
    "biases": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "queries not compressed": ("deepseek_v2", {"q_lora_rank": None}),
    "mixers with biases, one group": (
        "mamba2",
        {"use_bias": True, "use_conv_bias": False, "n_groups": 1, "tie_word_embeddings": True},
    ),
    "groups of experts": ("deepseek_v2", GROUPS | {"topk_method": "group_limited_greedy", "routed_scaling_factor": 1.7}),
}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {name: (name, {}) for name in families()}
MODELS = FAMILIES | VARIANTS


def make(directory: Path, model_type: str, seed: int = 0, **changes: Any) -> PreTrainedModel:
    """The model, which is then in `directory` too. Weights are random, logits of order 1, norms are not 1, biases not 0."""
    left_out = ("model_type", "architectures", "torch_dtype")
    settings = {k: v for k, v in families()[model_type].tiny.items() if k not in left_out} | changes
    if "rope_parameters" in changes:
        settings.pop("rope_theta", None)
    config = AutoConfig.for_model(model_type, **settings)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    randomise(model.state_dict(), seed)
    model.save_pretrained(directory)
    return model


def randomise(state: dict[str, torch.Tensor], seed: int) -> None:
    """Matrices keep the size of what they multiply; logits are of order 1."""
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in state.items():
        noise = torch.randn(tensor.shape, generator=generator)
        if any(part in name for part in ("embed", "wte", "wpe", "lm_head")):
            tensor.copy_(0.15 * noise)
        elif tensor.ndim > 1:
            tensor.copy_(tensor.shape[-1] ** -0.5 * noise)
        elif name.endswith(("norm.weight", "ln_1.weight", "ln_2.weight", "ln_f.weight", "norm_f.weight")):
            tensor.copy_(1 + 0.2 * noise)
        elif name.endswith("A_log"):
            tensor.copy_(noise - 2)  # states that keep what was tens of tokens before
        else:
            tensor.copy_(0.2 * noise)


def random_ids(count: int, vocab: int = 131, seed: int = 0) -> list[int]:
    return torch.randint(vocab, (count,), generator=torch.Generator().manual_seed(seed)).tolist()


CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
FAST = ("--max-new-tokens", "8", "--cache-tokens", "512", "--device", "cpu")
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
VOCAB = 262  # 256 bytes, a few pairs, the special tokens


def add_tokenizer(directory: Path, template: str | None = CHATML) -> None:
    """A tokenizer of bytes and a few pairs, with a chat template."""
    import json

    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    bytes_ = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("t", "h"), ("h", "e"), ("Ġ", "t")]
    vocab = {token: i for i, token in enumerate([*bytes_, *(a + b for a, b in merges)])}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(text, special=True) for text in SPECIAL])
    assert tokenizer.get_vocab_size() == VOCAB
    tokenizer.save(str(directory / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|im_end|>", "chat_template": template}
    (directory / "tokenizer_config.json").write_text(json.dumps({k: v for k, v in settings.items() if v is not None}))


def llama_with_tokenizer(directory: Path, model_type: str = "llama", **changes: Any) -> PreTrainedModel:
    """A tiny Llama (or another) that reads and writes bytes; its answers are noise."""
    model = make(directory, model_type, **({"vocab_size": VOCAB, "eos_token_id": VOCAB - 1, "bos_token_id": None} | changes))
    add_tokenizer(directory)
    return model


def talker(directory: Path, chains: dict[str, list[str]], **changes: Any) -> None:
    """A Llama whose next token depends on the last one alone. After each key come its tokens, whatever they say, then the end;
    a chain whose last token is its first never ends. A conversation is written as its last message.

    Keys and tokens are all different.
    """
    import json

    from safetensors.torch import save_file
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    from jumar.schema.registry import family_of

    tokens = list(dict.fromkeys(["<|end|>", "<|unknown|>", *chains, *(token for chain in chains.values() for token in chain)]))
    family, size = family_of("llama"), -(-len(tokens) // 32) * 32
    config = {
        **family.tiny,
        "vocab_size": len(tokens),
        "eos_token_id": 0,
        "hidden_size": size,
        "head_dim": size // family.tiny["num_attention_heads"],
        **changes,
    }
    tensors = {}
    for name, shape in family.hf_tensors(family.spec(config)).items():
        tensors[name] = torch.ones(shape) if "norm" in name else torch.zeros(shape)
    tensors["model.embed_tokens.weight"][:, : len(tokens)] = torch.eye(len(tokens))
    for key, chain in chains.items():
        ending = [] if chain[-1] == chain[0] else ["<|end|>"]
        for token, following in zip([key, *chain], [*chain, *ending], strict=False):
            tensors["lm_head.weight"][tokens.index(following), tokens.index(token)] = 1
    directory.mkdir(parents=True)
    save_file(tensors, directory / "model.safetensors")
    (directory / "config.json").write_text(json.dumps(config))
    tokenizer = Tokenizer(models.WordLevel({token: i for i, token in enumerate(tokens)}, unk_token="<|unknown|>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens([AddedToken("<|end|>", special=True)])
    tokenizer.save(str(directory / "tokenizer.json"))
    template = "{{ messages[-1].content }}"
    (directory / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|end|>", "chat_template": template}))
