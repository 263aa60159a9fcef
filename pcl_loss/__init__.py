"""The contrastive loss of "A Practical Contrastive Learning Framework for Single Image Super-Resolution"."""

from . import functional
from .criterion import PCLCriterion, PCLPerceptualLoss
from .discriminator import WaveletDiscriminator
from .embedding import Embedding, FixedEmbedding, VGGEmbedding
from .loss import ContrastiveDiscriminatorLoss, PCLLoss
from .wavelet import haar_dwt

__version__ = "0.1.0"

__all__ = [
    "ContrastiveDiscriminatorLoss",
    "Embedding",
    "FixedEmbedding",
    "PCLCriterion",
    "PCLLoss",
    "PCLPerceptualLoss",
    "VGGEmbedding",
    "WaveletDiscriminator",
    "functional",
    "haar_dwt",
]
