"""Ask a fine-tuned classifier by transformers' pipeline, which needs nothing of unmask.

    unmask evaluate finetune RUN DATA --out finetuned
    unmask export finetuned --to transformers -o hf-classifier
    python examples/transformers_pipeline.py hf-classifier IMAGE [IMAGE ...]

Needs `pip install transformers`. The network is the same to float32's rounding, and so are the pixels where the whole
image is taken (classifiers of up to 64 pixels). With a margin around the crop, transformers resizes first and then cuts
whole pixels, where unmask cuts first: half a level of 255 on average, more at sharp edges.
"""

from __future__ import annotations

import argparse

from transformers import pipeline


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("classifier", help="what `unmask export --to transformers` has written")
    parser.add_argument("images", nargs="+", help="files or addresses of images")
    parser.add_argument("--top", type=int, default=3, help="classes to name")
    args = parser.parse_args()

    classify = pipeline("image-classification", model=args.classifier)
    for name, answers in zip(args.images, classify(args.images, top_k=args.top), strict=True):
        print(name, *(f"{answer['label']} {100 * answer['score']:.2f} %" for answer in answers), sep="  ")


if __name__ == "__main__":
    main()
