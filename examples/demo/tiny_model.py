"""A model to train from scratch, its tokenizer made of the text, and a config: tiny_model.py DIR llama|mixtral FILE.jsonl"""

import json
import sys
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

VOCAB, EOD = 2048, "<|endoftext|>"
SIZES = {
    "vocab_size": VOCAB,
    "hidden_size": 128,
    "intermediate_size": 352,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
    "bos_token_id": 0,
    "eos_token_id": 0,
}
KINDS = {
    "llama": {"architectures": ["LlamaForCausalLM"], "tie_word_embeddings": True},
    "mixtral": {"architectures": ["MixtralForCausalLM"], "num_local_experts": 4, "num_experts_per_tok": 2},
}

folder, kind, text = sys.argv[1:]
tokenizer = Tokenizer(models.BPE())
tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
tokenizer.decoder = decoders.ByteLevel()
alphabet = pre_tokenizers.ByteLevel.alphabet()
trainer = trainers.BpeTrainer(vocab_size=VOCAB, special_tokens=[EOD], initial_alphabet=alphabet, show_progress=False)
with open(text, encoding="utf-8") as lines:
    tokenizer.train_from_iterator((json.loads(line)["text"] for line in lines), trainer)

model = Path(folder)
model.mkdir(parents=True, exist_ok=True)
tokenizer.save(str(model / "tokenizer.json"))
names = {"bos_token": EOD, "eos_token": EOD, "pad_token": EOD, "tokenizer_class": "PreTrainedTokenizerFast"}
(model / "tokenizer_config.json").write_text(json.dumps(names, indent=2) + "\n")
(model / "config.json").write_text(json.dumps({"model_type": kind, **KINDS[kind], **SIZES}, indent=2) + "\n")
