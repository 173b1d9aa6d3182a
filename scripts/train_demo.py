"""Train the small demonstration model that ships with KernelForge.

The model is an RWKV-7 over bytes (256 tokens, the token id is the byte value) that is trained on
the King James Bible, whose text is in the public domain. PyTorch is needed by this script only; a
build for the CPU is enough: `pip install torch numpy safetensors`.

The text comes from Debian's packages `bible-kjv` and `bible-kjv-text`. One verse becomes one line,
and the reference in front of each verse is cut off:

    bible -f gen1:1-rev22:21 | sed 's/^[^ ]* //' > kjv.txt
    python scripts/train_demo.py --text kjv.txt --out demo.safetensors --minutes 50 --compile

The lines are grouped into blocks of 128 verses. Every 20th block is held out: it is never trained
on and serves to measure bits per byte. Also:

    --self-test                 compares the chunked form of the recurrence with the plain one
    --evaluate FILE --text ...  measures a finished file with the plain recurrence
    --heldout FILE --text ...   writes the first 8 kB of the held-out part to FILE

The tensor names and shapes in the written file are those of every other RWKV-7 checkpoint.
"""

from __future__ import annotations

import argparse
import math
import time
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as fn

VOCAB, HEAD = 256, 64
VERSES, EVERY = 128, 20  # verses in a block; one block in so many is held out
DECAY = math.exp(-0.5)
State = list[tuple[Tensor, Tensor, Tensor]]
Sequence = tuple[Tensor, ...]  # r, log of the decay, k, v, a = -kk, b = kk * rate: (B, H, T, N)


# ------------------------------------------------------------------------------------ recurrence
def wkv7_plain(seq: Sequence, s: Tensor) -> tuple[Tensor, Tensor]:
    """Token-by-token WKV7, the yardstick for `wkv7_chunked`.

    The state s (B, H, N, N) has value channels as rows and key channels as columns. Returns the
    outputs (B, H, T, N) and the state after the last token.
    """
    out = []
    for r, logw, k, v, a, b in zip(*(x.unbind(2) for x in seq), strict=True):
        hit = s @ a[..., None]
        s = s * logw.exp()[..., None, :] + hit * b[..., None, :] + v[..., None] * k[..., None, :]
        out.append((s @ r[..., None])[..., 0])
    return torch.stack(out, 2), s


def wkv7_chunked(seq: Sequence, s: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """The same over chunks: only one matrix product per chunk is left in the sequential part.

    Inside a chunk of `size` tokens (it divides T; up to 32 is safe in float32) every decay is
    divided out, so that all pairs of tokens meet in one product. A chunk as a whole maps the state
    affinely, S -> S G + E, and neither G nor E depends on S.
    """
    B, H, T, N = seq[0].shape
    nc = T // size

    def split(x: Tensor) -> Tensor:  # (B, H, T, N) -> (nc * B * H, size, N), chunk slowest
        return x.reshape(B * H, nc, size, N).transpose(0, 1).reshape(-1, size, N)

    r, logw, k, v, a, b = map(split, seq)
    total = logw.cumsum(1)
    grow, last = (-total).exp(), total[:, -1:].exp()
    q, a = r * total.exp(), a * (total - logw).exp()
    kb = torch.cat((k * grow, b * grow), 1)  # (., 2 size, N)
    mask = torch.cat([torch.ones(size, size).tril(d) for d in (-1, 0)]).repeat(1, 2)
    m = torch.bmm(torch.cat((a, q), 1), kb.mT) * mask
    ak, ab = m[:, :size, :size], m[:, :size, size:]
    qk, qb = m[:, size:, :size], m[:, size:, size:]
    # (1 - ab)^-1 [ak v | a]: ab is strictly lower triangular, so its powers run out.
    x = torch.cat((torch.bmm(ak, v), a), 2)
    power, reach = ab, 1
    while reach < size:
        x = x + torch.bmm(power, x)
        reach *= 2
        if reach < size:
            power = torch.bmm(power, power)
    own, weight = x[:, :, :N], x[:, :, N:]  # S a = own + weight S^T, per token
    both = torch.bmm(qb, x)
    out = torch.bmm(qk, v) + both[:, :, :N]
    read = q + both[:, :, N:]
    kb = kb * last
    e = torch.bmm(torch.cat((v, own), 1).mT, kb).view(nc, B * H, N, N).unbind(0)
    g = torch.bmm(weight.mT, kb[:, size:]) + torch.diag_embed(last[:, 0])
    s = s.reshape(B * H, N, N)
    starts = []
    for add, step in zip(e, g.view(nc, B * H, N, N).unbind(0), strict=True):
        starts.append(s)
        s = torch.baddbmm(add, s, step)
    out = torch.baddbmm(out, read, torch.cat(starts, 0).mT)
    out = out.view(nc, B * H, size, N).transpose(0, 1)
    return out.reshape(B, H, T, N), s.view(B, H, N, N)


def self_test() -> None:
    """Compare the chunked form with the plain one on random data, values and gradients."""
    torch.manual_seed(0)
    r, z, k, v, kk, probe = torch.randn(6, 2, 3, 128, HEAD)
    kk = fn.normalize(kk, dim=-1)
    inputs = (r, -DECAY * torch.sigmoid(3 * z), k, v, -kk, kk * torch.rand_like(kk))
    inputs += (torch.randn(2, 3, HEAD, HEAD),)
    results = []
    for size, dtype in ((0, torch.float64), (16, torch.float32), (32, torch.float32)):
        args = [x.to(dtype).requires_grad_() for x in inputs]
        seq, s = tuple(args[:6]), args[6]
        y, end = wkv7_chunked(seq, s, size) if size else wkv7_plain(seq, s)
        grads = torch.autograd.grad((y * probe.to(dtype)).sum() + end.sum(), args)
        results.append([y, end, *grads])
        pairs = zip(results[0], results[-1], strict=True)
        errors = [((got - want).norm() / want.norm()).item() for want, got in pairs]
        print(f"chunk {size}: relative error of y, state, gradients", *(f"{x:.1e}" for x in errors))
        if max(errors) > 1e-5:
            raise SystemExit("self-test failed")
    print("self-test passed")


# ----------------------------------------------------------------------------------------- model
def vector(x: Tensor) -> nn.Parameter:
    """A per-channel parameter (C,) in its stored shape (1, 1, C)."""
    return nn.Parameter(x.float().view(1, 1, -1).clone())


def small(rows: int, cols: int, gain: float) -> nn.Parameter:
    """An orthogonal (rows, cols) matrix times `gain`; zeros for gain 0."""
    x = torch.zeros(rows, cols)
    return nn.Parameter(nn.init.orthogonal_(x, gain) if gain else x)


def dense(n_in: int, n_out: int, spread: float) -> nn.Linear:
    """A linear layer without bias whose weights are uniform within +-spread."""
    layer = nn.Linear(n_in, n_out, bias=False)
    nn.init.uniform_(layer.weight, -spread, spread)
    return layer


def shift(x: Tensor, prev: Tensor) -> Tensor:
    """Difference to the previous token: x (B, T, C), prev (B, C) -> (B, T, C)."""
    return torch.cat((prev[:, None], x[:, :-1]), 1) - x


class TimeMix(nn.Module):
    """RWKV-7 time mixing."""

    def __init__(self, i: int, layers: int, C: int, lora: int, chunk: int) -> None:
        super().__init__()
        self.chunk = chunk
        ramp, line = torch.arange(C) / C, torch.arange(C) / (C - 1)
        within = torch.arange(C) % HEAD / (HEAD - 1)  # every head gets its own spread of decays
        depth, left = i / max(layers - 1, 1), 1 - i / layers
        for name, power in zip("rwkvag", (0.2, 0.9, 0.7, 0.7, 0.9, 0.2), strict=True):
            setattr(self, f"x_{name}", vector(1 - ramp ** (power * left)))
        self.w0 = vector(-6 + 5 * (0.5 * line + 0.5 * within) ** (1 + depth**0.3))
        self.a0, self.v0 = vector(0.4 * (within - 0.5)), vector(0.7 - 0.4 * line)
        for name in "wavg":
            setattr(self, f"{name}1", small(C, lora, 0.1 if name == "g" else 0.0))
            setattr(self, f"{name}2", small(lora, C, 1.0 if name == "g" else 0.1))
        if i == 0:
            del self.v0, self.v1, self.v2
        self.k_k, self.k_a = vector(torch.full((C,), 0.85)), vector(torch.ones(C))
        self.r_k = nn.Parameter(torch.full((C // HEAD, HEAD), -0.04))
        for name in ("receptance", "key", "value", "output"):
            setattr(self, name, dense(C, C, 0.0 if name == "output" else 0.5 * C**-0.5))
        self.ln_x = nn.GroupNorm(C // HEAD, C, eps=64e-5)
        nn.init.constant_(self.ln_x.weight, ((1 + i) / layers) ** 0.7)

    def forward(
        self, x: Tensor, prev: Tensor, s: Tensor, v_first: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """From x (B, T, C), prev (B, C), s (B, H, N, N) to output (B, T, C), s, v of layer 0."""
        B, T, C = x.shape
        d = shift(x, prev)
        xr, xw, xk, xv, xa, xg = (x + d * getattr(self, f"x_{c}") for c in "rwkvag")
        r, k, v = self.receptance(xr), self.key(xk), self.value(xv)
        logw = -DECAY * torch.sigmoid(self.w0 + torch.tanh(xw @ self.w1) @ self.w2)
        a = torch.sigmoid(self.a0 + (xa @ self.a1) @ self.a2)
        g = torch.sigmoid(xg @ self.g1) @ self.g2
        if v_first is None:
            v_first = v
        else:
            v = v + (v_first - v) * torch.sigmoid(self.v0 + (xv @ self.v1) @ self.v2)

        def heads(z: Tensor) -> Tensor:  # (B, T, C) -> (B, H, T, N)
            return z.view(B, T, C // HEAD, HEAD).transpose(1, 2)

        kk = fn.normalize(heads(k * self.k_k), dim=-1, eps=1e-12)
        k = k * (1 + (a - 1) * self.k_a)
        seq = (heads(r), heads(logw), heads(k), heads(v), -kk, kk * heads(a))
        y, s = wkv7_chunked(seq, s, self.chunk) if self.chunk else wkv7_plain(seq, s)
        y = self.ln_x(y.transpose(1, 2).reshape(B * T, C)).view(B, T, C)
        bonus = (seq[0] * seq[2] * self.r_k[:, None]).sum(-1, keepdim=True) * seq[3]
        y = y + bonus.transpose(1, 2).reshape(B, T, C)
        return self.output(y * g), s, v_first


class ChannelMix(nn.Module):
    """RWKV-7 channel mixing."""

    def __init__(self, i: int, layers: int, C: int) -> None:
        super().__init__()
        self.x_k = vector(1 - (torch.arange(C) / C) ** ((1 - i / layers) ** 4))
        self.key, self.value = dense(C, 4 * C, 0.5 * C**-0.5), dense(4 * C, C, 0.0)

    def forward(self, x: Tensor, prev: Tensor) -> Tensor:
        """From x (B, T, C) and prev (B, C) to (B, T, C)."""
        return self.value(torch.relu(self.key(x + shift(x, prev) * self.x_k)) ** 2)


class Model(nn.Module):
    """The whole network; attribute names make up the official tensor names."""

    def __init__(self, layers: int, C: int, lora: int, chunk: int) -> None:
        super().__init__()
        self.emb = nn.Embedding(VOCAB, C)
        nn.init.uniform_(self.emb.weight, -0.02, 0.02)
        self.blocks = nn.ModuleList()
        for i in range(layers):
            block = nn.ModuleDict({"ln0": nn.LayerNorm(C)} if i == 0 else {})
            block.update({"ln1": nn.LayerNorm(C), "ln2": nn.LayerNorm(C)})
            block["att"] = TimeMix(i, layers, C, lora, chunk)
            block["ffn"] = ChannelMix(i, layers, C)
            self.blocks.append(block)
        self.ln_out, self.head = nn.LayerNorm(C), nn.Linear(C, VOCAB, bias=False)
        nn.init.orthogonal_(self.head.weight, 0.5)

    def zero_state(self, rows: int) -> State:
        """Per layer: (B, C), (B, H, N, N), (B, C), all zero."""
        C, z = self.head.in_features, torch.zeros
        return [(z(rows, C), z(rows, C // HEAD, HEAD, HEAD), z(rows, C)) for _ in self.blocks]

    def forward(self, ids: Tensor, state: State) -> tuple[Tensor, State]:
        """From ids (B, T) and a state to logits (B, T, 256) and the detached new state."""
        x = self.blocks[0]["ln0"](self.emb(ids))
        v_first, new = None, []
        for block, (att_x, s, ffn_x) in zip(self.blocks, state, strict=True):
            h = block["ln1"](x)
            y, s, v_first = block["att"](h, att_x, s, v_first)
            x = x + y
            u = block["ln2"](x)
            x = x + block["ffn"](u, ffn_x)
            new.append((h[:, -1].detach(), s.detach(), u[:, -1].detach()))
        return self.head(self.ln_out(x)), new


# -------------------------------------------------------------------------------------- training
def read_text(path: Path) -> tuple[bytes, bytes]:
    """Split the text file into (training part, held-out part) by blocks of verses."""
    lines = path.read_bytes().splitlines(keepends=True)
    blocks = [b"".join(lines[i : i + VERSES]) for i in range(0, len(lines), VERSES)]
    held = blocks[EVERY - 1 :: EVERY]
    del blocks[EVERY - 1 :: EVERY]
    return b"".join(blocks), b"".join(held)


def loss_of(model: nn.Module, rows: Tensor, state: State) -> tuple[Tensor, State]:
    """Mean cross entropy in nats of rows (B, T + 1) and the new state."""
    logits, state = model(rows[:, :-1], state)
    return fn.cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten()), state


@torch.no_grad()
def quick_eval(model: Model, held: Tensor, ctx: int) -> float:
    """Bits per byte on part of the held-out text: 8 streams of 4096 bytes, state carried."""
    streams = held[: len(held) // 8 * 8].view(8, -1)[:, :4097]
    state, losses = model.zero_state(8), []
    for i in range(0, 4096, ctx):
        loss, state = loss_of(model, streams[:, i : i + ctx + 1], state)
        losses.append(loss.item())
    return sum(losses) / len(losses) / math.log(2)


def save(model: Model, path: Path) -> None:
    """Write the weights as float16 safetensors; the old file stays whole until the end."""
    part = path.with_suffix(".part")
    tensors = {n: p.detach().numpy().astype(np.float16) for n, p in model.named_parameters()}
    save_file(tensors, part, metadata={"format": "pt"})
    part.replace(path)


def train(args: argparse.Namespace) -> None:
    """Train until the time (or the number of steps) is over; the schedule follows that budget."""
    torch.manual_seed(args.seed)
    rng = np.random.default_rng(args.seed)
    parts = (np.frombuffer(part, np.uint8).astype(np.int64) for part in read_text(args.text))
    data, held = map(torch.from_numpy, parts)
    model = Model(args.layers, args.width, args.lora, args.chunk)
    fast = torch.compile(model) if args.compile else model
    plain, decayed = [], []
    for name, p in model.named_parameters():
        matrix = p.ndim == 2 and not name.endswith("r_k") and name != "emb.weight"
        (decayed if matrix else plain).append(p)
    groups = [{"params": decayed, "weight_decay": args.decay}, {"params": plain}]
    opt = torch.optim.AdamW(groups, args.lr, (0.9, 0.99), 1e-12, weight_decay=0.0, fused=True)
    count = sum(p.numel() for p in model.parameters())
    print(f"{count} parameters, {len(data)} training bytes, {len(held)} held out", flush=True)
    span, limit = np.arange(args.ctx + 1), len(data) - args.ctx - 1
    pos, state = rng.integers(0, limit, args.batch), model.zero_state(args.batch)
    begin = last_save = last_log = time.monotonic()
    step, losses, done = 0, [], 0.0
    while done < 1.0:
        now = time.monotonic()
        begin = now if step == 1 else begin  # a compilation in the first step does not count
        done = step / args.steps if args.steps else (now - begin) / (60 * args.minutes)
        rate = args.lr * (0.05 + 0.95 * (0.5 + 0.5 * math.cos(math.pi * min(done, 1.0))))
        for group in opt.param_groups:
            group["lr"] = rate * min(1.0, (step + 1) / args.warmup)
        # A row goes on where it was, with its state, or jumps to a random place with none.
        jump = (rng.random(args.batch) < args.jump) | (pos > limit)
        pos[jump] = rng.integers(0, limit, int(jump.sum()))
        keep = torch.tensor(~jump)[:, None]
        state = [(x * keep, s * keep[..., None, None], u * keep) for x, s, u in state]
        rows = data[torch.tensor(pos[:, None] + span)]
        pos += args.ctx
        loss, state = loss_of(fast, rows, state)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        opt.step()
        opt.zero_grad(set_to_none=True)
        step += 1
        losses.append(loss.item())
        if now - last_log > args.log_seconds or done >= 1.0:
            last_log, tokens = now, step * args.batch * args.ctx
            bits, mean = quick_eval(model, held, args.ctx), sum(losses) / len(losses) / math.log(2)
            print(f"{(now - begin) / 60:6.2f} min  step {step}  {tokens} tokens", end="  ")
            print(f"train {mean:.4f}  held-out {bits:.4f} bits per byte", flush=True)
            losses = []
        if now - last_save > 60 * args.save_minutes or done >= 1.0:
            last_save = now
            save(model, args.out)


# ---------------------------------------------------------------------------------- verification
@torch.no_grad()
def evaluate(path: Path, text: bytes, seed: int) -> None:
    """Sample 600 bytes from a finished file, then print its bits per byte on `text`.

    Both use the weights as they are in the file, float32 arithmetic and the plain recurrence; the
    text is read in one pass from a zero state.
    """
    weights = {name: torch.from_numpy(x).float() for name, x in load_file(path).items()}
    layers = sum(name.endswith("ln1.weight") for name in weights)
    model = Model(layers, *weights["blocks.0.att.w1"].shape, 0)
    model.load_state_dict(weights)
    rng, out = np.random.default_rng(seed), bytearray(b"And it came to pass")
    logits, state = model(torch.tensor([list(out)]), model.zero_state(1))
    for _ in range(600):  # temperature 1, top-p 0.5
        prob, order = logits[0, -1].double().softmax(0).sort(descending=True)
        keep = int(torch.searchsorted(prob.cumsum(0), 0.5)) + 1
        chance = (prob[:keep] / prob[:keep].sum()).numpy()
        out.append(int(rng.choice(order[:keep].numpy(), p=chance)))
        logits, state = model(torch.tensor([[out[-1]]]), state)
    print(out.decode("utf-8", "replace"), flush=True)
    ids, state, bits = torch.tensor([list(text)]), model.zero_state(1), 0.0
    for i in range(0, len(text) - 1, 256):
        rows = ids[:, i : i + 257]
        loss, state = loss_of(model, rows, state)
        bits += loss.item() * (rows.shape[1] - 1) / math.log(2)
    print(f"{len(text) - 1} bytes: {bits / (len(text) - 1):.4f} bits per byte")


def main() -> None:
    """Command line."""
    ap = argparse.ArgumentParser(description="Train the byte-level RWKV-7 demonstration model.")
    ap.add_argument("--text", type=Path, help="text file, one verse per line")
    ap.add_argument("--out", type=Path, help="where the float16 safetensors file goes")
    ap.add_argument("--evaluate", type=Path, help="measure this file instead of training")
    ap.add_argument("--heldout", type=Path, help="write the start of the held-out part here")
    ap.add_argument("--self-test", action="store_true", help="check the chunked recurrence")
    ap.add_argument("--compile", action="store_true", help="use torch.compile (needs a compiler)")
    ap.add_argument("--minutes", type=float, default=50.0, help="length of the training run")
    ap.add_argument("--steps", type=int, default=0, help="fixed number of steps instead of a time")
    whole = {"layers": 5, "width": 192, "lora": 32, "ctx": 256, "batch": 8, "chunk": 32}
    whole |= {"warmup": 200, "seed": 1, "threads": 1}
    real = {"lr": 2.5e-3, "decay": 0.1, "jump": 0.1, "log-seconds": 120.0, "save-minutes": 4.0}
    for name, value in (whole | real).items():
        ap.add_argument(f"--{name}", type=type(value), default=value)
    args = ap.parse_args()
    torch.set_num_threads(args.threads)
    if args.self_test:
        self_test()
    elif args.heldout:
        held = read_text(args.text)[1]
        args.heldout.write_bytes(held[: held.rindex(b"\n", 0, 8192) + 1])
    elif args.evaluate:
        evaluate(args.evaluate, read_text(args.text)[1], args.seed)
    else:
        train(args)


if __name__ == "__main__":
    main()
