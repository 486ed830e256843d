"""Numbers on a GPU: Cerebras's reference case, and attention and loss against float64."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from btlm_train import model as btlm_model
from btlm_train.interchange.names import from_huggingface, to_modelzoo
from btlm_train.model import BTLM, alibi_slopes, attention_bias
from btlm_train.optim import AdamW
from btlm_train.parameters import ModelConfig, OptimizerConfig, Params, ScheduleSegment

REFERENCE = Path(__file__).parent.parent / "golden" / "btlm_reference"


def distance(ours: Tensor, expected: Tensor) -> float:
    """||ours - expected|| / ||expected||, in float64; NaN and infinity count as 1e9."""
    a, b = ours.detach().double().cpu(), expected.detach().double().cpu()
    value = float((a - b).norm() / b.norm())
    return value if value < 1e9 else 1e9


def farthest(ours: Tensor, expected: Tensor) -> float:
    """The largest |ours - expected| as a multiple of the tolerance 1e-5 + 1e-5 |expected|."""
    a, b = ours.detach().double().cpu(), expected.detach().double().cpu()
    value = float(((a - b).abs() / (1e-5 + 1e-5 * b.abs())).max())
    return value if value < 1e9 else 1e9


def reference(_data: Path, _out: Path) -> bool:
    """Logits, loss, every gradient and five optimizer steps in float32, with both kinds of attention."""
    recorded: dict[str, Any] = json.loads((REFERENCE / "config.json").read_text())
    config = ModelConfig.model_validate(recorded["model"])
    outputs = load_file(REFERENCE / "outputs.safetensors")
    batch = {name: value.cuda() for name, value in load_file(REFERENCE / "batch.safetensors").items()}
    weights = from_huggingface(load_file(REFERENCE / "hf_state.safetensors"))
    held = True
    for attention in ("sdpa", "flex"):
        model = BTLM(config, attention=attention)
        model.load_state_dict(weights)
        model.cuda()
        found = {"logits": farthest(model.logits(model(batch["input_ids"])), outputs["logits"])}
        loss = _reference_loss(model, config, batch)
        loss.backward()  # type: ignore[no-untyped-call]
        found["loss"] = farthest(loss, outputs["loss"].reshape(()))
        gradients = to_modelzoo(
            {name: p.grad for name, p in model.named_parameters() if p.grad is not None}, config
        )
        found["gradients"] = max(
            farthest(gradients[name.removeprefix("grad.")], value)
            for name, value in outputs.items()
            if name.startswith("grad.")
        )
        model.zero_grad()
        found |= _five_steps(model, config, recorded, batch, outputs)
        print(f"  {attention}: largest error as a multiple of 1e-5 (absolute and relative)")
        for name, value in found.items():
            # gradients of key biases are zero but for rounding, and Adam makes steps of that rounding
            print(f"    {name:<24} {value:8.3f}")
            held &= value <= (1 if not name.startswith("weights") else 2)
    return held


def _reference_loss(model: BTLM, config: ModelConfig, batch: dict[str, Tensor]) -> Tensor:
    total: Tensor = model(batch["input_ids"], batch["labels"], batch["attention_mask"])
    return total / len(batch["input_ids"]) * config.loss_weight


def _five_steps(
    model: BTLM,
    config: ModelConfig,
    recorded: dict[str, Any],
    batch: dict[str, Tensor],
    outputs: dict[str, Tensor],
) -> dict[str, float]:
    values = {**recorded["schedule"], 0.0: 0.0}
    params = Params(
        model=config,
        schedule=tuple(
            ScheduleSegment(kind="linear", initial=values[a], end=values[b], total_iters=values[length])
            for length, a, b in (("warmup", 0.0, "peak"), ("decay", "peak", "end"))
        ),
        optimizer=OptimizerConfig.model_validate(
            recorded["optimizer"] | {"max_gradient_norm": recorded["max_gradient_norm"]}
        ),
    )
    optimizer = AdamW(model.named_parameters(), config, params.optimizer)
    losses, norms = [], []
    for step in range(recorded["steps"]):
        with sdpa_kernel(SDPBackend.MATH):
            loss = _reference_loss(model, config, batch)
            loss.backward()  # type: ignore[no-untyped-call]
        norms.append(float(torch.nn.utils.clip_grad_norm_(model.parameters(), recorded["max_gradient_norm"])))
        optimizer.step(params.learning_rate(step))
        optimizer.zero_grad()
        losses.append(loss.item())
    after = to_modelzoo({name: value.cpu() for name, value in model.state_dict().items()}, config)
    moved = {
        name.removeprefix("after."): value for name, value in outputs.items() if name.startswith("after.")
    }
    return {
        "losses of 5 steps": farthest(torch.tensor(losses), outputs["losses"].flatten()),
        "norms of 5 steps": farthest(torch.tensor(norms), outputs["grad_norms"].flatten()),
        "weights after 5 steps": max(
            farthest(after[name], value) for name, value in moved.items() if "bias" not in name
        ),
    }


def attention(_data: Path, _out: Path) -> bool:
    """FlexAttention and scaled_dot_product_attention against float64, heads of 80 as in BTLM: outputs and
    gradients, with and without documents kept apart.
    """
    held = True
    print("  length  apart  type      kernel  output   gradients of q, k, v (relative distance from float64)")
    for length, heads in ((2048, 32), (1000, 32), (8192, 4)):
        for spans in (False, True):
            for dtype, most in ((torch.float32, 2e-5), (torch.bfloat16, 1e-2)):
                if length < 8192 or dtype == torch.bfloat16:
                    held &= _one_attention(length, heads, spans, dtype, most)
    return held


def _one_attention(length: int, heads: int, spans: bool, dtype: torch.dtype, most: float) -> bool:
    generator = torch.Generator("cuda").manual_seed(length + spans)
    slopes = alibi_slopes(32)[:heads].cuda()
    shape = (2, heads, length, 80)
    drawn = [torch.randn(shape, device="cuda", generator=generator).to(dtype) for _ in range(4)]
    span = _random_spans(2, length).cuda() if spans else None
    scale = 1 / 80  # muP
    exact = [tensor.double().requires_grad_() for tensor in drawn[:3]]
    scores = exact[0] @ exact[1].transpose(2, 3) * scale
    scores = scores + attention_bias(slopes.double(), length, length, span)
    expected = torch.softmax(scores, 3) @ exact[2]
    expected.backward(drawn[3].double())  # type: ignore[no-untyped-call]
    del scores
    held = True
    for kernel in ("flex", "sdpa"):
        q, k, v = (tensor.clone().requires_grad_() for tensor in drawn[:3])
        if kernel == "flex":
            visibility = btlm_model._flex_visibility(slopes, length, span)
            out = btlm_model._flex_attention(q, k, v, visibility, scale)
        else:
            bias = attention_bias(slopes, length, length, span, dtype)
            out = F.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=scale)
        out.backward(drawn[3])  # type: ignore[no-untyped-call]
        found = [distance(out, expected)]
        found += [
            distance(ours.grad, plain.grad)
            for ours, plain in zip((q, k, v), exact, strict=True)
            if ours.grad is not None and plain.grad is not None
        ]
        # a bias in bfloat16 rounds distances, so plain attention is only shown beside ours
        held &= len(found) == 4 and (kernel == "sdpa" or max(found) <= most)
        figures = "  ".join(f"{value:.1e}" for value in found)
        print(f"  {length:>6}  {spans!s:<5}  {str(dtype)[6:]:<8}  {kernel:<6}  {figures}", flush=True)
    return held


def _random_spans(rows: int, length: int) -> Tensor:
    """(rows, length): tokens left in each token's document, documents of 1 to 700 tokens."""
    generator = torch.Generator().manual_seed(length)
    spans = []
    for _ in range(rows):
        left: list[Tensor] = []
        while sum(map(len, left)) < length:
            size = int(torch.randint(1, 700, (), generator=generator))
            left.append(torch.arange(size - 1, -1, -1))
        spans.append(torch.cat(left)[-length:])
    return torch.stack(spans).int()


def loss(_data: Path, _out: Path) -> bool:
    """The summed cross-entropy of BTLM's head (50,257 tokens, width 2,560) against float64."""
    generator = torch.Generator("cuda").manual_seed(0)
    hidden = torch.randn(6000, 2560, device="cuda", generator=generator)
    weight = torch.randn(50257, 2560, device="cuda", generator=generator) * 0.073
    labels = torch.randint(0, 50257, (6000,), device="cuda", generator=generator)
    mask = torch.randint(0, 2, (6000,), device="cuda", generator=generator)
    scale = 0.222
    h, w = hidden.double().requires_grad_(), weight.double().requires_grad_()
    losses = F.cross_entropy(F.linear(h, w) * scale, labels, reduction="none")
    expected = (losses * mask).sum()
    expected.backward()  # type: ignore[no-untyped-call]
    held = True
    ours: Any = btlm_model._SummedCrossEntropy
    for low, most in ((False, 1e-5), (True, 1e-2)):
        a, b = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
        with torch.autocast("cuda", dtype=torch.bfloat16, enabled=low, cache_enabled=False):
            total = ours.apply(a, b, labels, mask, scale)
        total.backward()
        if a.grad is None or b.grad is None or h.grad is None or w.grad is None:
            return False
        found = [distance(total, expected.detach()), distance(a.grad, h.grad), distance(b.grad, w.grad)]
        held &= max(found) <= most
        kind = "bfloat16" if low else "float32"
        print(f"  {kind:<8}  loss {found[0]:.1e}  hidden {found[1]:.1e}  weight {found[2]:.1e}")
    return held
