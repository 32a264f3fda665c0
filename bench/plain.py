"""The same training written the plain way from diffusers and PEFT: what a step costs without Pixelkiln."""

from __future__ import annotations

import gc
from typing import Any

import torch

from pixelkiln.trainer.families.load import load
from pixelkiln.trainer.training.session import Session


class Plain:
    """One LoRA step on the bare denoiser of ``session``: same modules, rank, optimizer, precision, batch and pictures.

    PEFT injects the adapter, diffusers' own gradient checkpointing recomputes, autocast and AdamW are torch's. Latents
    and text come from the same caches. There is no pixel term, no preference, no quantized or offloaded weight.
    """

    def __init__(self, session: Session, checkpointing: bool, dtype: torch.dtype):
        import peft

        adapter = session.model.adapter
        paths = [path for one in adapter.mounted for path in one.plan.site.paths if one.component == "unet"]
        config = peft.LoraConfig(r=adapter.rank, lora_alpha=int(adapter.alpha), target_modules=paths)
        family, device = session.model.family, session.model.device
        session.model.adapter = session.optimization = adapter = None  # pyright: ignore[reportAttributeAccessIssue]
        family.denoiser = None  # the one that carries our adapter goes
        gc.collect()
        denoiser: Any = load(session.config.model, dtype).denoiser.to(device)
        self.model = peft.inject_adapter_in_model(config, denoiser)
        for name, parameter in self.model.named_parameters():
            if "lora_" in name:
                parameter.data = parameter.data.float()
        if checkpointing:
            denoiser.enable_gradient_checkpointing()
        denoiser.train()
        self.session = session
        self.trained = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(self.trained, lr=1e-4)

    def step(self, index: int) -> None:
        p = self.session.model
        batch = self.session.dataset.batch(index).to(p.device)
        assert batch.conditioning is not None
        noise, clean = torch.randn_like(batch.latents), batch.latents
        size = len(batch)
        if p.process.is_flow:
            level = torch.rand(size, device=p.device)
        else:
            level = torch.randint(0, p.process.steps, (size,), device=p.device).float()
        noisy = p.process.noisy(clean, noise, level)
        with p.autocast():
            out = p.family.spec.run(self.model, noisy.to(p.dtype), p.process.time(level), p.conditioning(batch))
        target = noise - clean if p.process.is_flow else noise
        torch.nn.functional.mse_loss(out.float(), target.float()).backward()
        torch.nn.utils.clip_grad_norm_(self.trained, 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
