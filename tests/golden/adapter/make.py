# Makes this folder with torch, transformers and PEFT (written with 2.x, 5.23 and 0.21):
#   base/     a tiny random Llama in bf16
#   adapter/  a LoRA adapter by PEFT with rank and alpha patterns, rsLoRA and an exclusion
#   merged.safetensors   the adapted matrices of PEFT's merge_and_unload on the base in fp32
#   modules.json         rank, alpha and scaling that PEFT gives each module
import json
import os
import shutil

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM

here = os.path.dirname(os.path.abspath(__file__))
os.chdir(here)
for old in ("base", "adapter"):
    shutil.rmtree(old, ignore_errors=True)
torch.manual_seed(0)
config = LlamaConfig(hidden_size=24, intermediate_size=40, num_hidden_layers=2, vocab_size=48,
                     num_attention_heads=3, num_key_value_heads=1, max_position_embeddings=64,
                     tie_word_embeddings=False)
LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained("base")
os.remove("base/generation_config.json")

base = LlamaForCausalLM.from_pretrained("base", dtype=torch.float32)
model = get_peft_model(base, LoraConfig(
    task_type="CAUSAL_LM", r=5, lora_alpha=8, target_modules="all-linear", use_rslora=True,
    exclude_modules=["o_proj"], rank_pattern={"q_proj": 3, r"model\.layers\.1\.mlp\..*": 2},
    alpha_pattern={"^model.layers.0.mlp.up_proj": 5.5, "v_proj": 3}))
for name, p in model.named_parameters():
    if "lora_" in name:
        p.data = torch.randn(p.shape) * 0.2
modules = {name.removeprefix("base_model.model."): {
    "rank": m.r["default"], "alpha": m.lora_alpha["default"], "scaling": m.scaling["default"]}
    for name, m in model.named_modules() if hasattr(m, "lora_A") and m.r}
json.dump(modules, open("modules.json", "w"), indent=1, sort_keys=True)
model.peft_config["default"].base_model_name_or_path = "tests/golden/adapter/base"
model.save_pretrained("adapter")
os.remove("adapter/README.md")

merged = PeftModel.from_pretrained(LlamaForCausalLM.from_pretrained("base", dtype=torch.float32),
                                   "adapter").merge_and_unload()
save_file({k: v for k, v in merged.state_dict().items() if k.removesuffix(".weight") in modules},
          "merged.safetensors")
