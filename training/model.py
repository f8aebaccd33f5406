"""The trained network: MM Grounding DINO of transformers, with small dimensions."""

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
    """Return the configuration: 3.2 million parameters, with every module of the published models."""
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
        # transformers' default is true: all decoder layers would refine boxes with the head of the first.
        decoder_bbox_embed_share=False,
        decoder_cls_embed_share=False,
        two_stage_bbox_embed_share=False,
    )


def image_processor() -> GroundingDinoImageProcessorPil:
    """Return the image processor: shortest edge 128 pixels, longest edge at most 224."""
    return GroundingDinoImageProcessorPil(size={"shortest_edge": 128, "longest_edge": 224})


def create(seed: int) -> MMGroundingDinoForObjectDetection:
    """Create the network with random weights, as in transformers except for the backbone and the fusion scales."""
    torch.manual_seed(seed)
    network = MMGroundingDinoForObjectDetection(config())
    # The text encoder receives a boolean mask. The attention "eager" would add it to the scores as ones and zeros.
    assert network.config.text_config._attn_implementation == "sdpa"
    # The usual standard deviation of 0.02 suits 100 channels or more. With the 24 channels of the first stage, signals
    # would nearly vanish.
    for module in network.model.backbone.conv_encoder.model.modules():
        if isinstance(module, (torch.nn.Linear, torch.nn.Conv2d)):
            module.reset_parameters()
    for layer in network.model.encoder.layers:
        # The usual value of 1e-4 keeps image and text separate for thousands of steps.
        torch.nn.init.constant_(layer.fusion_layer.vision_param, 0.5)
        torch.nn.init.constant_(layer.fusion_layer.text_param, 0.5)
    return network
