"""Text encoders, their cache on disk, and banks of embeddings."""

from satunet.text.bank import TextBank
from satunet.text.encoder import TextEncoder
from satunet.text.load import TEXT_ENCODER_FOLDER, load_text_encoder

__all__ = ["TEXT_ENCODER_FOLDER", "TextBank", "TextEncoder", "load_text_encoder"]
