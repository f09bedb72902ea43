"""How fast photos are decoded and resized, by the libraries that are installed.

    python tests/bench/decoding_speed.py --photos PHOTOS

Real photos as they are, and the same ones enlarged to twelve million pixels. Milliseconds for a photo on one core, from
the file's bytes to 600x400 RGB; for all but Pillow the resizing is still Pillow's, for its filter is the identity's.
"""

import argparse
import io
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from featstore.photos.decoding import EncodedPhoto

SIZE = (600, 400)
Decoder = Callable[[bytes], Image.Image]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, required=True)
    parser.add_argument("--count", type=int, default=60)
    args = parser.parse_args()
    files = sorted(args.photos.rglob("*.jpg"))[: args.count]
    small = [file.read_bytes() for file in files]
    large = [enlarge(data) for data in small[:8]]
    print(f"{'':>34}  {'as they are':>12}  {'12 megapixels':>14}")
    for name, decoder in decoders().items():
        print(f"{name:>34}  {milliseconds(decoder, small):>9.2f} ms  {milliseconds(decoder, large):>11.1f} ms")


def decoders() -> dict[str, Decoder]:
    found: dict[str, Decoder] = {
        "featstore (Pillow, scaled DCT)": lambda data: EncodedPhoto(data).decode(SIZE),
        "Pillow": lambda data: Image.open(io.BytesIO(data)).convert("RGB"),
    }
    try:
        import simplejpeg

        found["simplejpeg"] = lambda data: Image.fromarray(simplejpeg.decode_jpeg(data))
        found["simplejpeg, scaled DCT"] = lambda data: Image.fromarray(
            simplejpeg.decode_jpeg(data, min_width=2 * SIZE[0], min_height=2 * SIZE[1])
        )
    except ImportError:
        print("simplejpeg is not installed")
    try:
        import torch
        import torchvision.io

        found["torchvision.io"] = lambda data: Image.fromarray(
            torchvision.io.decode_jpeg(torch.frombuffer(bytearray(data), dtype=torch.uint8)).permute(1, 2, 0).numpy()
        )
    except (ImportError, AttributeError):
        print("torchvision.io is not here")
    try:
        import turbojpeg

        turbo = turbojpeg.TurboJPEG()
        found["PyTurboJPEG"] = lambda data: Image.fromarray(turbo.decode(data, pixel_format=turbojpeg.TJPF_RGB))
    except (ImportError, RuntimeError):
        print("PyTurboJPEG or its libturbojpeg is not installed")
    try:
        import pyvips

        found["pyvips"] = lambda data: Image.fromarray(pyvips.Image.new_from_buffer(data, "").numpy())
    except (ImportError, OSError):
        print("pyvips or its libvips is not installed")
    return found


def milliseconds(decoder: Decoder, photos: list[bytes]) -> float:
    decoder(photos[0])
    times = []
    for data in photos:
        started = time.perf_counter()
        np.asarray(decoder(data).resize(SIZE, Image.Resampling.BILINEAR))
        times.append(time.perf_counter() - started)
    return 1000 * float(np.median(times))


def enlarge(data: bytes) -> bytes:
    out = io.BytesIO()
    Image.open(io.BytesIO(data)).convert("RGB").resize((4000, 3000), Image.Resampling.BICUBIC).save(
        out, "JPEG", quality=92
    )
    return out.getvalue()


if __name__ == "__main__":
    main()
