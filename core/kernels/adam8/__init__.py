"""AdamW with moments of 8 bits, for many parameters at once: the update of bitsandbytes' `AdamW8bit` in one launch."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from core.kernels.adam8 import reference
from core.kernels.adam8.reference import Codes, Rates, Slot
from core.kernels.backend import runs_fused

if TYPE_CHECKING:
    from core.kernels.adam8.fused import Launch

__all__ = ["Adam8", "Codes", "Rates", "Slot"]


class Adam8:
    """The update of a set of parameters; remembers where they lie from one step to the next."""

    def __init__(self, codes: Codes) -> None:
        """Prepare.

        Args:
            codes: What the codes of all moments stand for; on the parameters' device.
        """
        self._codes = codes
        self._launch: Launch | None = None

    def update(self, slots: Sequence[Slot], gradients: Sequence[torch.Tensor], rates: Rates) -> None:
        """Update parameters and moments in place, without waiting for the GPU.

        m' = beta1 m + (1 - beta1) g; v' = beta2 v + (1 - beta2) g^2; the parameter loses lr times its weight decay,
        and then lr m^ / (sqrt(v^) + eps), where m^ and v^ are m' and v' corrected for their beginning at zero.
        The moments are those from before they are packed into 8 bits again. Where a gradient is infinite or no
        number, the parameter stays and its moments become zero.

        Args:
            slots: The parameters, of one float dtype and on one device. A moment stays where it is as long as
                its slot is the same object; a parameter may move.
            gradients: Theirs, contiguous, of one float dtype; only read.
            rates: Settings and number of the step.
        """
        if not slots:
            return
        parameter, gradient = slots[0].parameter, gradients[0]
        wide = parameter.element_size() > 4 or gradient.element_size() > 4
        if not runs_fused(parameter.device) or wide:
            reference.update(slots, gradients, self._codes, rates)
            return
        if self._launch is None:
            from core.kernels.adam8 import fused

            self._launch = fused.Launch(self._codes)
        self._launch.update(slots, gradients, rates)
