"""Convert a model in Python and generate with transformers: python examples/convert.py"""

from pathlib import Path

from rich.console import Console
from transformers import AutoModelForCausalLM, AutoTokenizer

import vllm_mha2mla  # noqa: F401  (teaches transformers the converted architecture)
from conversion.pipeline import Options, convert
from conversion.recipes.make import make_recipe
from conversion.runtime.progress import Progress
from conversion.source import open_source

OUT = Path("converted")

# Half the cache, for a first look; the preset "half" takes longer and loses less.
recipe = make_recipe(Path("quick"))
source = open_source("demo:smollm2-135m")  # or a model's folder, or a .gguf file
convert(source, OUT, recipe, Options(overwrite=True), Progress(Console()))

tokenizer = AutoTokenizer.from_pretrained(OUT)
model = AutoModelForCausalLM.from_pretrained(OUT, dtype="float32")
question = [{"role": "user", "content": "What is the capital of France?"}]
inputs = tokenizer.apply_chat_template(question, add_generation_prompt=True, return_tensors="pt")
answer = model.generate(**inputs, max_new_tokens=40, do_sample=False)[0]
print(tokenizer.decode(answer[inputs["input_ids"].shape[1] :], skip_special_tokens=True))
