"""Trains the network that `make demo` prunes, and writes `examples/digits_resnet20.onnx`.

A CIFAR-style ResNet-20 (He et al. 2016, section 4.2; 16-32-64 filters, 1×1 convolutions where shapes change),
written and exported by plain torch as any user would, on the 1,797 handwritten digits (8×8 grey) that ship with
Billhook. It sees only the training split that Billhook itself makes of `builtin:digits`, so that the test split is
unseen by model and service alike. Takes about two minutes on two cores:

    .venv/bin/python -m examples.train_digits
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, pad

from core.data.datasets import load_dataset
from core.job import DatasetInput

TARGET = Path(__file__).parent / "digits_resnet20.onnx"


class Block(nn.Module):
    def __init__(self, wide_in: int, wide_out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(wide_in, wide_out, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(wide_out)
        self.conv2 = nn.Conv2d(wide_out, wide_out, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(wide_out)
        self.shortcut = nn.Sequential()
        if stride != 1 or wide_in != wide_out:
            self.shortcut = nn.Sequential(nn.Conv2d(wide_in, wide_out, 1, stride, bias=False), nn.BatchNorm2d(wide_out))

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.bn1(self.conv1(x)))
        return torch.relu(self.bn2(self.conv2(y)) + self.shortcut(x))


class ResNet20(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        blocks, wide = [], 16
        for width, stride in ((16, 1), (32, 2), (64, 2)):
            for number in range(3):
                blocks.append(Block(wide, width, stride if number == 0 else 1))
                wide = width
        self.blocks = nn.Sequential(*blocks)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(64, 10)

    def forward(self, image: Tensor) -> Tensor:
        x = torch.relu(self.bn1(self.conv1(image)))
        return self.fc(self.pool(self.blocks(x)).flatten(1))


def shifted(x: Tensor) -> Tensor:
    """Each image moved by up to one pixel."""
    wide = pad(x, (1, 1, 1, 1))
    rows, columns = torch.randint(0, 3, (2, len(x)))
    return torch.stack(
        [w[:, r : r + 8, c : c + 8] for w, r, c in zip(wide, rows.tolist(), columns.tolist(), strict=True)]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--output", type=Path, default=TARGET)
    arguments = parser.parse_args()
    torch.manual_seed(0)
    data = load_dataset(DatasetInput(path=None, sha256=None, format="digits"))
    images = {name: data.preprocess(split.x) for name, split in data.splits.items()}
    labels = {name: split.y for name, split in data.splits.items()}
    model = ResNet20()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=5e-4)
    steps = arguments.epochs * -(-len(labels["train"]) // 64)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.1, total_steps=steps)
    for epoch in range(arguments.epochs):
        model.train()
        for batch in torch.randperm(len(labels["train"])).split(64):
            loss = cross_entropy(model(shifted(images["train"][batch])), labels["train"][batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        model.eval()
        with torch.no_grad():
            scores = {
                n: (model(images[n]).argmax(1) == labels[n]).float().mean().item() for n in ("validation", "test")
            }
        print(f"epoch {epoch + 1}: loss {loss.item():.4f}, " + ", ".join(f"{n} {s:.2%}" for n, s in scores.items()))
    torch.onnx.export(
        model, (images["test"][:1],), arguments.output, input_names=["image"], output_names=["logits"],
        dynamic_axes={"image": {0: "batch"}, "logits": {0: "batch"}}, opset_version=17, dynamo=False,
        do_constant_folding=False, training=torch.onnx.TrainingMode.PRESERVE,
    )  # fmt: skip


if __name__ == "__main__":
    main()
