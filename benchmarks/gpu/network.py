"""Parts about the network: ceilings of the card, correctness against the CPU, patch, training step, loss."""

from __future__ import annotations

import contextlib
import copy
import functools
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from gpu.bench import Axes, Bench, Measured
from gpu.sat import SatGraph, as_sat_runs, plain_loss
from satunet.compute.devices import autocast_for
from satunet.network.backbone import use_channels_last
from satunet.network.config import NetworkConfig
from satunet.network.engines import accelerate
from satunet.network.model import PromptedUNet, mask_logits

Run = Callable[[Tensor], Any]


def ceilings(bench: Bench) -> None:
    """Rates that nothing here can exceed: a large matrix product and a large copy."""
    n = bench.sizes.matrix
    for dtype in (torch.float16, torch.bfloat16):
        a, b = (torch.randn(n, n, device=bench.device, dtype=dtype) for _ in range(2))
        product = bench.time(lambda a=a, b=b: a @ b, budget=0.4)
        bench.peak = 2 * n**3 / product.seconds
        bench.say(f"  {n}³ matrix product, {dtype}: {bench.peak / 1e12:.4g} TFLOP/s")
    source = torch.randn(bench.sizes.copied_bytes // 4, device=bench.device)
    target = torch.empty_like(source)
    copied = bench.time(lambda: target.copy_(source), budget=0.4)
    bench.say(f"  copy: {2 * bench.sizes.copied_bytes / copied.seconds / 1e12:.3g} TB/s, read and written")


def make(config: NetworkConfig, device: torch.device, seed: int = 0) -> PromptedUNet:
    """A network with random weights, in evaluation mode."""
    torch.manual_seed(seed)
    with torch.device(device):
        network = PromptedUNet(config)
    with torch.no_grad():  # norms as in a trained network: not all alike
        for name, parameter in network.named_parameters():
            if ".norm." in name:
                parameter.add_(0.2 * torch.randn_like(parameter))
    return network.eval()


def sat_of(network: PromptedUNet, device: torch.device) -> SatGraph:
    with torch.device(device):
        return SatGraph(network.config).take(network).eval()


def operations(config: NetworkConfig, patch: Axes) -> float:
    """Floating-point operations of the backbone's forward pass: two for each multiplication and addition."""
    from torch.utils.flop_counter import FlopCounterMode

    with torch.device("meta"):
        network, image = PromptedUNet(config), torch.zeros(1, 1, *patch)
    with FlopCounterMode(display=False) as counter:
        network.encode_image(image)
    return float(counter.get_total_flops())


@contextlib.contextmanager
def _benchmarked() -> Any:
    cudnn: Any = torch.backends.cudnn
    before, cudnn.benchmark = cudnn.benchmark, True
    try:
        yield
    finally:
        cudnn.benchmark = before


def ways(network: PromptedUNet, bench: Bench, *, slow: bool = False) -> dict[str, Run]:
    """Image (1, 1, X, Y, Z) → features, in every way there is; those that take long to begin only if asked for."""
    device = bench.device
    half: Any = "float16" if bench.cuda else "bfloat16"

    def eager(net: Any, precision: Any, *, fast: bool = False) -> Run:
        def run(image: Tensor) -> Any:
            with autocast_for(device, precision), _benchmarked() if fast else contextlib.nullcontext():
                return net.encode_image(image)

        return run

    found: dict[str, Run] = {}
    if not slow:
        try:
            sat = sat_of(network, device)
        except ImportError as error:
            bench.say(f"  SAT's graph left out: {error}")
        else:

            def as_sat(image: Tensor) -> Any:
                with as_sat_runs(device):
                    return sat.features(image.repeat(1, 3, 1, 1, 1))

            found[f"SAT's graph, {half}"] = as_sat
    if slow:
        compiled = accelerate(copy.deepcopy(network), device, engine="compile")
        found["engine compile, bfloat16"] = eager(compiled, "bfloat16")
        return found
    plain = accelerate(network, device, engine="eager")
    found["engine eager, bfloat16"] = eager(plain, "bfloat16")
    found[f"engine eager, {half}"] = eager(plain, half)
    fused = copy.deepcopy(plain)  # a copy: the layout of weights changes in place
    use_channels_last(fused)
    found["engine fused, bfloat16"] = eager(fused, "bfloat16")
    found["engine fused, bfloat16, cuDNN's benchmark"] = eager(fused, "bfloat16", fast=True)
    found[f"engine fused, {half}"] = eager(fused, half)
    found["engine eager, bfloat16, cuDNN's benchmark"] = eager(plain, "bfloat16", fast=True)
    moved = copy.deepcopy(plain).to(memory_format=torch.channels_last_3d)
    found["engine eager, bfloat16, channels last"] = eager(moved, "bfloat16")
    return found


def maps_of(features: Any) -> Tensor:
    """The full-resolution map of what a way gives."""
    return features[2][0] if isinstance(features, tuple) else features.maps[0]


def tokens_of(features: Any) -> Tensor:
    """(B, T, D) tokens."""
    return features[0].transpose(0, 1) if isinstance(features, tuple) else features.memory


@torch.inference_mode()
def correctness(bench: Bench, *, slow: bool = False) -> None:
    """Distance from the same network on the CPU in float32: ‖a − b‖ / ‖b‖, and masks of 16 queries."""
    network = make(bench.sizes.nano, bench.device)
    image = torch.randn(1, 1, *bench.sizes.checked_patch)
    queries = torch.randn(1, 16, network.config.text_dim)
    reference = copy.deepcopy(network).cpu()
    expected = reference.encode_image(image)
    embeddings = reference.decode(expected, queries)[0]
    logits = mask_logits(expected.maps[0], embeddings)
    # Masks of random weights fill all or nothing: cut each query at its own median.
    middle = logits.flatten(2).median(2).values[..., None]
    masks = logits.flatten(2) > middle
    rows = [["against float32 on the CPU", "features", "tokens", "masks, DSC"]]
    for name, run in ways(network, bench, slow=slow).items():
        found = run(image.to(bench.device))
        distances = [
            float((a.float().cpu() - b).norm() / b.norm())
            for a, b in ((maps_of(found), expected.maps[0]), (tokens_of(found), expected.memory))
        ]
        other = mask_logits(maps_of(found).float().cpu(), embeddings).flatten(2) > middle
        dsc = 2 * float((other & masks).sum()) / float(other.sum() + masks.sum())
        rows.append([name, *(f"{d:.1e}" for d in distances), f"{dsc:.4f}"])
    bench.table(rows)


@torch.inference_mode()
def patch(bench: Bench, config: NetworkConfig, name: str, *, slow: bool = False) -> None:
    """Image to features of one window."""
    size = bench.sizes.patch
    work = operations(config, size)
    network = make(config, bench.device)
    bench.say(f"  {name}, {size}, {work / 1e12:.3g} TFLOP; median (least to most), memory with the weights")
    image = torch.randn(1, 1, *size, device=bench.device)
    times: dict[str, Measured] = {}
    for way, run in ways(network, bench, slow=slow).items():
        try:
            times[way] = bench.time(lambda run=run: run(image), budget=0.7)
        except RuntimeError as error:
            bench.say(f"  {way}: failed: {str(error).splitlines()[0][:200]}")
            error.__traceback__ = None
            bench.clean()
            continue
        peer = next((t for w, t in times.items() if w.startswith("SAT")), None)
        share = 100 * work / times[way].seconds / bench.peak if bench.peak else 0.0
        ratio = f", {peer.seconds / times[way].seconds:.2f} times as fast as SAT's graph" if peer else ""
        bench.say(f"  {way}: {times[way]}, {share:.0f} % of the peak{ratio}")


def batch_of(bench: Bench, config: NetworkConfig, size: int) -> Any:
    """Random crops that show as many classes as there are queries."""
    from satunet.trainers.unified.batches.batch import Batch

    count, shape = bench.sizes.queries, bench.sizes.training_patch
    labels = torch.randint(0, count + 1, (size, *(n // 16 for n in shape)))
    for axis in (1, 2, 3):
        labels = labels.repeat_interleave(16, axis)
    membership = torch.zeros(size, count, count + 1, dtype=torch.bool)
    membership[:, torch.arange(count), torch.arange(count) + 1] = True
    return Batch(
        image=torch.randn(size, 1, *shape),
        labels=labels,
        queries=torch.randn(size, count, config.text_dim),
        membership=membership,
        valid=torch.ones(size, count, dtype=torch.bool),
        positive=torch.ones(size, count, dtype=torch.bool),
        modality=torch.zeros(size, dtype=torch.long),
        names=((),) * size,
        scans=tuple(f"scan {k}" for k in range(size)),
        failed=(),
        some_ignored=False,
    )


def step(bench: Bench, config: NetworkConfig, label: str, size: int) -> None:
    """A training step: ours by the trainer's own stepper, SAT's as its trainer takes it."""
    from satunet.trainers.config import TrainingConfig
    from satunet.trainers.unified.stepping import Stepper

    batch = batch_of(bench, config, size)
    work = 3 * size * operations(config, bench.sizes.training_patch)
    bench.say(
        f"  {label}, batch {size}, {bench.sizes.training_patch}, {bench.sizes.queries} queries, {work / 1e12:.3g} TFLOP"
    )
    here = batch.to(bench.device)
    times: dict[str, Measured] = {}
    losses: dict[str, list[float]] = {"satunet, channels last": [], "satunet": [], "SAT": []}

    def report(side: str, extra: str = "") -> None:
        share = 100 * work / times[side].seconds / bench.peak if bench.peak else 0.0
        course = f"loss {losses[side][0]:.4f} to {losses[side][-1]:.4f} in {len(losses[side])} steps"
        bench.say(f"  {side}: {times[side]}, {share:.0f} % of the peak, {course}{extra}")

    def ours(name: str) -> None:
        network = make(config, bench.device).train()
        if "channels last" in name:
            use_channels_last(network)
        optimizer = torch.optim.AdamW(network.parameters(), 1e-4, weight_decay=1e-2)
        settings = TrainingConfig.from_recipe("sat", precision="bfloat16", warmup_steps=0)
        stepper = Stepper(network, optimizer, None, settings, bench.device, at_once=size)
        times[name] = bench.time(lambda: losses[name].append(stepper.take(here, 1).loss), budget=2.0, most=8)
        phases = ", ".join(f"{k} {1e3 * v:.1f}" for k, v in stepper.clock.seconds().items() if v)
        report(name, f"; phases of the last (ms): {phases}")

    def sat(name: str) -> None:
        network = sat_of(make(config, bench.device), bench.device).train()
        optimizer = torch.optim.AdamW(network.parameters(), 1e-4)
        scaler = torch.GradScaler(bench.device.type, enabled=bench.cuda)
        masks = torch.stack([(here.labels == k + 1).float() for k in range(bench.sizes.queries)], 1)

        def take() -> None:
            with as_sat_runs(bench.device):
                logits = network(here.image.repeat(1, 3, 1, 1, 1), here.queries)
                loss = plain_loss(logits, masks)
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            optimizer.zero_grad()
            scaler.update()
            losses[name].append(float(loss.detach()))

        times[name] = bench.time(take, budget=2.0, most=8)
        report(name)

    for name in losses:
        try:
            (sat if name == "SAT" else ours)(name)
        except (RuntimeError, ImportError) as error:
            bench.say(f"  {name}: failed: {str(error).splitlines()[0][:200]}")
            error.__traceback__ = None
        bench.clean()
    peer = times.get("SAT")
    for name in times:
        if peer is not None and name != "SAT":
            memory = f", 1/{peer.peak_gb / times[name].peak_gb:.2f} of its memory" if peer.peak_gb else ""
            bench.say(f"  {name}: {peer.seconds / times[name].seconds:.2f} times as fast as SAT{memory}")


def loss(bench: Bench) -> None:
    """The loss kernel against Dice and cross-entropy by autograd: values, gradients, time, memory."""
    for count in (32, 256) if bench.cuda else (4, 16):
        _loss(bench, count)
        bench.clean()


def _loss(bench: Bench, count: int) -> None:
    from satunet.trainers.unified.loss import prompted_loss

    shape, channels = bench.sizes.loss_map, 64
    torch.manual_seed(0)
    kept = torch.randn(1, channels, *shape, device=bench.device)
    weights = torch.randn(1, count, channels, device=bench.device) / 8
    labels = torch.randint(0, count + 1, (1, *shape), device=bench.device)
    membership = torch.eye(count + 1, dtype=torch.bool, device=bench.device)[None, 1:]
    valid = torch.ones(1, count, dtype=torch.bool)
    gradients: dict[str, list[Any]] = {}

    def ours() -> None:
        a, w = kept.detach().requires_grad_(), weights.detach().requires_grad_()
        total = prompted_loss([a], [w], labels, membership, valid, ignored=False).total
        total.backward()
        gradients["ours"] = [total.detach(), a.grad, w.grad]

    def plain() -> None:
        a, w = kept.detach().requires_grad_(), weights.detach().requires_grad_()
        numbers = torch.arange(1, count + 1, device=bench.device)[:, None, None, None]
        total = plain_loss([mask_logits(a, w)], (labels[:, None] == numbers).float())
        total.backward()
        gradients["plain"] = [total.detach(), a.grad, w.grad]

    mine = bench.time(ours, budget=0.7)
    bench.say(f"  {count} queries on {shape}, {channels} features: {mine}")
    try:
        peer = bench.time(plain, budget=0.7, warm=1)
    except RuntimeError as error:
        bench.say(f"  autograd, {count} queries: failed: {str(error).splitlines()[0][:160]}")
        error.__traceback__ = None
        return
    distance = [float((a - b).norm() / b.norm()) for a, b in zip(gradients["ours"], gradients["plain"], strict=True)]
    bench.say(
        f"  autograd: {peer}; satunet {peer.seconds / mine.seconds:.2f} times as fast; loss and gradients of map "
        f"and queries differ by {distance[0]:.0e}, {distance[1]:.0e}, {distance[2]:.0e}"
    )


@torch.inference_mode()
def layers(bench: Bench) -> None:
    """Convolutions one by one, without norms: which of them are far from the peak."""
    calls: list[tuple[str, Any, tuple[int, ...]]] = []
    with torch.device("meta"):
        network, image = PromptedUNet(bench.sizes.nano), torch.zeros(1, 1, *bench.sizes.patch)
    for name, module in network.backbone.named_modules():
        if isinstance(module, (nn.Conv3d, nn.ConvTranspose3d)):
            module.register_forward_hook(
                lambda m, given, _, n=name: calls.append((n, m, tuple(given[0].shape)))  # type: ignore[misc]
            )
    network.encode_image(image)
    half = torch.float16 if bench.cuda else torch.bfloat16
    last = torch.channels_last_3d
    ways_ = {
        "as SAT": (half, torch.contiguous_format, functools.partial(as_sat_runs, bench.device)),
        "channels last": (torch.bfloat16, last, contextlib.nullcontext),
        "benchmarked": (torch.bfloat16, last, _benchmarked),
    }
    rows = [["convolution", "input", "output", "GFLOP", *(f"{way}, ms" for way in ways_), "% of the peak"]]
    sums = [0.0] * len(ways_)
    for name, module, shape in calls:
        taken = []
        up = isinstance(module, nn.ConvTranspose3d)
        grid = [n * s if up else n // s for n, s in zip(shape[2:], module.stride, strict=True)]
        taps = math.prod(module.kernel_size) / (math.prod(module.stride) if up else 1)
        work = 2 * module.in_channels * module.out_channels * math.prod(grid) * taps
        call = nn.functional.conv_transpose3d if up else nn.functional.conv3d
        for dtype, layout, context in ways_.values():
            x = torch.randn(shape, device=bench.device, dtype=dtype).contiguous(memory_format=layout)  # type: ignore[call-overload]
            w = torch.randn(module.weight.shape, device=bench.device, dtype=dtype).contiguous(memory_format=layout)  # type: ignore[call-overload]
            options = {"stride": module.stride, "padding": module.padding}
            with context():
                run = functools.partial(call, x, w, None, **options)
                taken.append(bench.time(run, budget=0.05, most=5, warm=1).seconds)
            del x, w, run
        sums = [a + b for a, b in zip(sums, taken, strict=True)]
        best = 100 * work / min(taken) / bench.peak if bench.peak else 0.0
        rows.append(
            [name.replace(".convs", ""), f"{shape[1]} x {'·'.join(map(str, shape[2:]))}", str(module.out_channels),
             f"{work / 1e9:.1f}", *(f"{1e3 * t:.2f}" for t in taken), f"{best:.0f}"]
        )  # fmt: skip
    rows.append(["all", "", "", "", *(f"{1e3 * t:.1f}" for t in sums), ""])
    bench.table(rows)


def idle(bench: Bench) -> None:
    """How busy the card is in a window's network and in a training step, and what takes the time."""
    from satunet.trainers.config import TrainingConfig
    from satunet.trainers.unified.stepping import Stepper

    network = make(bench.sizes.nano, bench.device)
    image = torch.randn(1, 1, *bench.sizes.patch, device=bench.device)
    with torch.inference_mode():
        for name, run in ways(network, bench).items():
            if name.startswith("SAT") or name in ("engine eager, bfloat16", "engine fused, float16"):
                bench.say(f"  {name}, patch: {bench.busy(lambda run=run: run(image))}")
    network.train()
    use_channels_last(network)
    settings = TrainingConfig.from_recipe("sat", precision="bfloat16", warmup_steps=0)
    optimizer = torch.optim.AdamW(network.parameters(), 1e-4)
    stepper = Stepper(network, optimizer, None, settings, bench.device, at_once=bench.sizes.training_batch)
    here = batch_of(bench, bench.sizes.nano, bench.sizes.training_batch).to(bench.device)
    bench.say(f"  a step: {bench.busy(lambda: stepper.take(here, 1))}")
