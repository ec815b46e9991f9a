"""What a layer's backward pass needs of its forward pass."""

from torch import Tensor

from core.kernels.attention import Attended
from core.kernels.rms_norm import rms_norm
from core.models.fused.passes import Pass
from core.models.fused.sublayers import Parts, attend, close, flat, normed, project, split


class Recalled:
    """The tensors of a layer in its backward pass: what was kept, or else computed again, each once."""

    def __init__(self, run: Pass, index: int, x: Tensor | None) -> None:
        """Ask for what waits in main memory.

        Args:
            run: The pass.
            index: The layer.
            x: Its input, unless that waits in main memory.
        """
        self.run, self.index, self.site = run, index, run.sites[index]
        self.held_x = x
        self.parts: Parts | None = None
        self.done: Attended | None = None
        self.added: Tensor | None = None
        run.store.ask(index, ["residual", "mlp_out", "qkv", "attention", "input", "attention_out"])

    def x(self) -> Tensor:
        """Return the input [t, e]."""
        if self.held_x is None:
            self.held_x = self.run.store.take(self.index, "input")
        assert self.held_x is not None
        return self.held_x

    def attention(self) -> tuple[Parts, Attended]:
        """Return queries, keys and values, and what attention made of them."""
        if self.parts is None or self.done is None:
            kept = self.run.store.take(self.index, "qkv")
            if kept is None:
                wide, _ = normed(self.site.before_attention, self.x(), self.site.qkv)
                qkv, _ = project(self.run, self.site, wide)
            else:
                qkv = kept
            self.parts = split(self.run, self.site, qkv, is_turned=kept is not None)
            out = self.run.store.take(self.index, "attention")
            if out is None:
                self.done = attend(self.run, self.site, self.parts)
            else:
                self.done = Attended(out.transpose(1, 2), self.run.store.states[self.index])
        return self.parts, self.done

    def residual(self) -> Tensor:
        """Return the sum after attention [t, e]."""
        kept = self.run.store.take(self.index, "residual")
        if kept is not None:
            return kept
        norm, added = self.site.after_attention, self.sublayer_out("attention_out")
        if norm is not None and added is not None:
            found, _ = rms_norm(added, norm.weight, norm.eps, offset=norm.offset, residual=self.x())
            return found
        _, done = self.attention()
        site = self.site
        found, self.added = close(self.run, site.o, site.after_attention, flat(done), self.x())
        return found

    def sublayer_out(self, name: str) -> Tensor | None:
        """Return what a sublayer of a sandwich returned before its norm, if it was kept."""
        if name == "mlp_out":
            return self.run.store.take(self.index, name)
        if self.added is None:
            self.added = self.run.store.take(self.index, name)
        return self.added
