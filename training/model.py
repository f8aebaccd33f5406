"""The network that is trained: transformers' MM Grounding DINO, small in every direction."""

import torch
from transformers import (
    BertConfig,
    GroundingDinoImageProcessorPil,
    MMGroundingDinoConfig,
    MMGroundingDinoForObjectDetection,
    SwinConfig,
)

from training.vocabulary import ROWS

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def config() -> MMGroundingDinoConfig:
    """3.2 million parameters; every part of the published models is there."""
    return MMGroundingDinoConfig(
        backbone_config=SwinConfig(
            image_size=128,
            embed_dim=24,
            depths=[2, 2, 2, 2],
            num_heads=[1, 2, 4, 8],
            window_size=4,
            drop_path_rate=0.0,
            out_indices=[2, 3, 4],
        ),
        text_config=BertConfig(
            vocab_size=ROWS,
            hidden_size=96,
            num_hidden_layers=2,
            num_attention_heads=4,
            intermediate_size=384,
            max_position_embeddings=256,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
        ),
        num_queries=20,
        d_model=96,
        encoder_layers=2,
        decoder_layers=3,
        encoder_ffn_dim=384,
        decoder_ffn_dim=384,
        encoder_attention_heads=6,
        decoder_attention_heads=6,
        dropout=0.0,
        fusion_droppath=0.0,
        # Absent, these three would be taken as true, and all decoder layers would refine with the first one's head.
        decoder_bbox_embed_share=False,
        decoder_cls_embed_share=False,
        two_stage_bbox_embed_share=False,
    )


def image_processor() -> GroundingDinoImageProcessorPil:
    """Short edges of 128 pixels, long ones of 224 at most."""
    return GroundingDinoImageProcessorPil(size={"shortest_edge": 128, "longest_edge": 224})


def create(seed: int) -> MMGroundingDinoForObjectDetection:
    """Random weights, as transformers draws them but for the scales of the fusion layers."""
    torch.manual_seed(seed)
    network = MMGroundingDinoForObjectDetection(config())
    # The text encoder is handed a boolean mask, which the other attention, "eager", would add as ones and zeros.
    assert network.config.text_config._attn_implementation == "sdpa"
    # The usual spread of 0.02 suits a hundred and more channels; the first stage's 24 would hardly pass a signal on.
    for module in network.model.backbone.conv_encoder.model.modules():
        if isinstance(module, (torch.nn.Linear, torch.nn.Conv2d)):
            module.reset_parameters()
    for layer in network.model.encoder.layers:
        # At their usual 1e-4 the picture and the words would not meet for thousands of steps.
        torch.nn.init.constant_(layer.fusion_layer.vision_param, 0.5)
        torch.nn.init.constant_(layer.fusion_layer.text_param, 0.5)
    return network
