"""A training script as small as it gets: a linear model from images to labels, with dsmem's flags for its data."""

from __future__ import annotations

import argparse

from dsmem.training import add_arguments, open_from_args


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    add_arguments(parser)  # --h5, --shared-memory, --preload, --cleanup-shm, --num-workers
    parser.add_argument("--loss", choices=["mse", "l1"], default="mse")
    parser.add_argument("--images", default="images", help="the dataset of images, uint8")
    parser.add_argument("--labels", default="labels", help="the dataset of labels, floats")
    parser.add_argument("--epochs", type=int, default=3)
    args = parser.parse_args()
    file = open_from_args(args)  # was: h5py.File(args.h5, "r"); it ends here with --cleanup-shm

    import torch
    from torch.utils.data import DataLoader, TensorDataset

    # Zero-copy: the tensors are the shared memory, in every process, also in the workers.
    images, labels = file.torch(args.images), file.torch(args.labels)
    loader = DataLoader(TensorDataset(images, labels), batch_size=8, shuffle=True, num_workers=args.num_workers)
    model = torch.nn.Linear(images[0].numel(), labels[0].numel())
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    measure = torch.nn.functional.mse_loss if args.loss == "mse" else torch.nn.functional.l1_loss
    total = 0.0
    for _ in range(args.epochs):
        total = 0.0
        for batch, wanted in loader:
            loss = measure(model(batch.flatten(1).float() / 255), wanted.flatten(1).float())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.item()
    # One write for the whole line: another training may print beside this one.
    print(f"{args.loss}: {total / max(len(loader), 1):.4f} after {args.epochs} epochs, data {file.source}\n", end="")


if __name__ == "__main__":
    main()
