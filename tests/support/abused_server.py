"""A server that answers as ``vllm serve`` does, of a model without attention; it can be made wrong.

The next token depends on the last two alone, so that every log-probability is known exactly.
"""

import asyncio
import json
import math
import random
from functools import lru_cache

from aiohttp import web

VOCABULARY, LONGEST, BLOCK, BLOCKS = 64, 512, 128, 5
OFF = 0.01
# More requests at once than a measurement of the noise makes.
LOADED = BLOCKS - 1
# What a server does wrong, once or while it is under load.
FAULTS = ("token", "logprob", "refusal", "crash", "short", "leak", "drift")


@lru_cache(None)
def logprobs(last):
    draw = random.Random(str(last))
    logits = [draw.gauss(0, 2) for _ in range(VOCABULARY)]
    total = math.log(sum(math.exp(x) for x in logits))
    return [x - total for x in logits]


class AbusedServer:
    def __init__(self, fault=None):
        assert fault is None or fault in FAULTS
        self.fault, self.running, self.most, self.held = fault, 0, 0, 0
        self.tokens = 0

    def app(self):
        app = web.Application()
        app.router.add_get("/v1/models", self.models)
        app.router.add_get("/metrics", self.metrics)
        app.router.add_post("/tokenize", self.tokenize)
        app.router.add_post("/v1/completions", self.completions)
        app.router.add_post("/v1/chat/completions", self.chat)
        return app

    async def models(self, _):
        return web.json_response({"data": [{"id": "model", "max_model_len": LONGEST}]})

    async def tokenize(self, request):
        text = (await request.json())["prompt"]
        return web.json_response({"tokens": [ord(letter) % VOCABULARY for letter in text]})

    async def metrics(self, _):
        figures = {
            "num_requests_running": self.running,
            "num_requests_waiting": 0,
            "kv_cache_usage_perc": self.held / BLOCKS,
            "num_preemptions_total": self.most,
            "prefix_cache_hits_total": self.tokens,
            "generation_tokens_total": self.tokens,
        }
        lines = [f"vllm:{name} {value}" for name, value in figures.items()]
        labels = f'num_gpu_blocks="{BLOCKS}",block_size="{BLOCK}"'
        lines.append(f"vllm:cache_config_info{{{labels}}} 1")
        return web.Response(text="\n".join(lines) + "\n")

    async def chat(self, request):
        return await self._serve(request, chat=True)

    async def completions(self, request):
        return await self._serve(request, chat=False)

    async def _serve(self, request, chat):
        try:
            body = json.loads(await request.text())
            if chat:
                letters = "".join(message["content"] for message in body.pop("messages"))
                body["prompt"] = [ord(letter) % VOCABULARY for letter in letters]
            check(body)
        except Exception:
            return self._refused()
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            return await self._answer(request, body, chat)
        finally:
            self.running -= 1
            self.held = int(self.fault == "leak" and self.most > LOADED)

    def _refused(self):
        if self.fault == "refusal":
            return web.json_response({"choices": []})
        return web.json_response({"error": "no"}, status=500 if self.fault == "crash" else 400)

    async def _answer(self, request, body, chat):
        prompt, scores = body["prompt"], body.get("prompt_logprobs") is not None
        count = min(body["max_tokens"], LONGEST - len(prompt))
        made, values = await self._generate(prompt, count)
        whole = {"prompt_token_ids": prompt}
        if scores:
            whole["prompt_logprobs"] = self._scores(prompt)
        half = len(made) // 2 if body.get("stream") else len(made)
        parts = [slice(0, half), slice(half, None)] if body.get("stream") else [slice(None)]
        answers = [
            {
                "choices": [
                    {
                        "index": index,
                        "token_ids": made[part],
                        "finish_reason": None if part is not parts[-1] else "length",
                        **shape(made[part], values[part], chat),
                        **({} if chat else whole),
                    }
                    for index in range(body.get("n", 1))
                ],
                **(whole if chat else {}),
            }
            for part in parts
        ]
        if not body.get("stream"):
            return web.json_response(answers[0])
        response = web.StreamResponse()
        await response.prepare(request)
        for answer in answers:
            await response.write(f"data: {json.dumps(answer)}\n\n".encode())
        await response.write(b"data: [DONE]\n\n")
        return response

    async def _generate(self, prompt, count):
        context, made, values = list(prompt), [], []
        for place in range(count):
            await asyncio.sleep(0.0005)
            row = self._row(context)
            best = sorted(range(VOCABULARY), key=row.__getitem__)[::-1]
            loaded = self.running > LOADED
            token = best[1 if loaded and self.fault == "token" and place % 5 == 4 else 0]
            values.append(row[token] - (OFF if loaded and self.fault == "logprob" else 0))
            made.append(token)
            context.append(token)
            self.tokens += 1
            if self.fault == "short" and loaded and place == 3:
                break
        return made, values

    def _row(self, context):
        row = logprobs(tuple(context[-2:]))
        if self.fault == "drift" and self.most > LOADED:
            return [x + OFF for x in row]
        return row

    def _scores(self, prompt):
        rows = [self._row(prompt[:place]) for place in range(1, len(prompt))]
        return [None] + [
            {str(i): {"logprob": row[i]} for i in {token, row.index(max(row))}}
            for token, row in zip(prompt[1:], rows, strict=True)
        ]


KNOWN = {
    *("prompt", "max_tokens", "temperature", "ignore_eos", "return_token_ids", "stream", "seed"),
    *("logprobs", "prompt_logprobs", "n", "top_p", "top_k", "min_p"),
}


def check(body):
    """Refuse what the plan's wrong requests get wrong."""
    assert body.keys() <= KNOWN
    prompt, tokens = body["prompt"], body["max_tokens"]
    assert all(type(token) is int and 0 <= token < VOCABULARY for token in prompt)
    assert 0 < len(prompt) < LONGEST
    assert type(tokens) is int
    assert 0 < tokens <= LONGEST
    temperature, n = body.get("temperature", 1), body.get("n", 1)
    assert 0 <= temperature <= 2
    assert 1 <= n <= (16 if temperature else 1)
    assert 0 < body.get("top_p", 1) <= 1
    assert body.get("top_k", 0) >= 0
    assert 0 <= body.get("min_p", 0) <= 1
    assert 0 <= body.get("seed", 0) < 1 << 63
    assert type(body.get("logprobs", 0)) in (int, bool)
    assert 0 <= body.get("logprobs", 0) <= 20
    assert 0 <= body.get("prompt_logprobs", 0) <= 20 * (not body.get("stream"))


def shape(tokens, values, chat):
    text = "".join(map(chr, tokens))
    if not chat:
        return {"text": text, "logprobs": {"token_logprobs": values}}
    entries = [{"logprob": value} for value in values]
    return {"message": {"content": text}, "logprobs": {"content": entries}}
