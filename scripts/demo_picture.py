"""Makes docs/images/demo.png, the README's picture, from a demo's report: demo_picture.py REPORT.html OUT.png."""

from __future__ import annotations

import base64
import io
import re
import sys
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

PLANES = 2  # axial and coronal, of the three that a report shows
HEADING = 26


def main(report: Path, out: Path) -> None:
    """A column a label map: reference, satunet, nnU-Net of every dataset, side by side."""
    page = report.read_text(encoding="utf-8")
    found = re.findall(r"data:image/webp;base64,([A-Za-z0-9+/=]+)", page)
    pictures = [Image.open(io.BytesIO(base64.b64decode(text))).convert("RGB") for text in found]
    datasets = len(pictures) // 3
    width = pictures[0].width
    height = pictures[0].height // 3 * PLANES
    sheet = Image.new("RGB", (len(pictures) * width + (datasets - 1) * 16, height + HEADING), "white")
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(size=17)
    for i, picture in enumerate(pictures):
        left = i * width + i // 3 * 16
        sheet.paste(picture.crop((0, 0, width, height)), (left, HEADING))
        draw.text((left + 4, 2), ("reference", "satunet", "nnU-Net")[i % 3], fill="#222", font=font)
    sheet = sheet.resize((sheet.width * 2 // 3, sheet.height * 2 // 3), Image.Resampling.LANCZOS)
    out.parent.mkdir(parents=True, exist_ok=True)
    sheet.quantize(192).save(out, optimize=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
