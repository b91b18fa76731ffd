"""Write tests/data/preferences.npz: loss and gradient of TRL 1.16.0's DPOTrainer (torch 2.13.0) on random logits.

python tests/data/make_preference_fixtures.py
"""

import collections
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from trl import DPOTrainer

ROWS, LENGTH, SYMBOLS, BETA = 6, 7, 11, 0.3


class Outputs(SimpleNamespace):
    """What the trainer reads of the model; what it only logs is 0."""

    def __getattr__(self, name):
        return torch.zeros(ROWS, LENGTH - 1, dtype=bool if name.startswith("is_") or "top" in name else None)


def main():
    """Write it. Chosen rows stand before rejected ones, as TRL has them."""
    chance = np.random.default_rng(0)
    ids = torch.from_numpy(chance.integers(0, SYMBOLS, (ROWS, LENGTH)))
    mask = torch.zeros(ROWS, LENGTH, dtype=torch.long)
    for row, (start, end) in enumerate([(2, 7), (3, 6), (1, 5), (2, 6), (3, 7), (1, 4)]):
        mask[row, start:end] = 1
    logits = torch.from_numpy(chance.normal(size=(ROWS, LENGTH, SYMBOLS)).astype("float32")).requires_grad_()
    reference = torch.from_numpy(chance.normal(-8, 2, ROWS).astype("float32"))

    class Model:
        training, config = True, SimpleNamespace()

        def __call__(self, labels=None, **inputs):
            log_probs = logits[:, :-1].log_softmax(-1).gather(-1, ids[:, 1:, None])[..., 0]
            log_probs = torch.where(labels[:, 1:] == -100, 0.0, log_probs)
            return Outputs(log_probs=log_probs, logits=logits)

    trainer = DPOTrainer.__new__(DPOTrainer)
    trainer.model, trainer.beta, trainer.label_smoothing = Model(), BETA, 0.0
    trainer.accelerator = SimpleNamespace(device="cpu", gather_for_metrics=lambda x: x, gather=lambda x: x)
    trainer.aux_loss_enabled, trainer.ld_alpha, trainer.precompute_ref_logps = False, None, True
    trainer.f_divergence_type, trainer.loss_types, trainer.loss_weights = "reverse_kl", ["sigmoid"], [1.0]
    trainer.use_weighting, trainer._metrics = False, collections.defaultdict(lambda: collections.defaultdict(list))
    trainer._total_train_tokens, trainer._tp_size = 0, 1
    trainer.args = SimpleNamespace(gradient_checkpointing_kwargs=None)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "completion_mask": mask}
    inputs |= {"ref_chosen_logps": reference[: ROWS // 2], "ref_rejected_logps": reference[ROWS // 2 :]}
    loss = trainer._compute_loss(trainer.model, inputs, False)
    loss.backward()
    np.savez_compressed(
        Path(__file__).parent / "preferences.npz",
        token_ids=ids.numpy().astype("int32"),
        completion_mask=mask.numpy().astype(bool),
        logits=logits.detach().numpy(),
        reference=reference.numpy(),
        beta=BETA,
        loss=loss.item(),
        gradient=logits.grad.numpy(),
    )


if __name__ == "__main__":
    main()
