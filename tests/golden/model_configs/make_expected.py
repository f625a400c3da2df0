# Writes expected.json: for each config.json here, as published, what transformers makes of it. Needs torch
# and transformers; no weights.
#   python tests/golden/model_configs/make_expected.py
import json
import pathlib
import shutil
import tempfile

import torch
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.pytorch_utils import Conv1D

here = pathlib.Path(__file__).parent
expected = {}
for path in sorted(here.glob("*.json")):
    if path.name == "expected.json":
        continue
    with tempfile.TemporaryDirectory() as folder:
        shutil.copy(path, pathlib.Path(folder) / "config.json")
        config = AutoConfig.from_pretrained(folder)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    parameters = dict(model.named_parameters())  # tied ones once
    expected[path.stem] = {
        "tensors": len(parameters),
        "weights": sum(p.numel() for p in parameters.values()),
        "linear": sum(isinstance(m, (torch.nn.Linear, Conv1D)) for m in model.base_model.modules()),
        "modules": len(dict(model.named_modules())) - 1,  # without the model itself
    }
(here / "expected.json").write_text(json.dumps(expected, indent=1) + "\n")
