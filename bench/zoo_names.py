"""Which of timm 1.0.31's networks are measured: those of fewer than 8 million parameters without attention.

A network is left out where its family mixes places by attention, a state space or a learned matrix over all places
instead of by convolutions (`LEFT_OUT`, with the number of names under 8 million parameters in each);
`mobilenetv4_hybrid_*` is the one such member of a family that stays.
"""

from __future__ import annotations

TIMM_FAMILIES: dict[str, str] = {
    "byobnet": "mobileone_s0 mobileone_s1 mobileone_s2 test_byobnet",
    "convnext": (
        "convnext_atto convnext_atto_ols convnext_atto_rms convnext_femto convnext_femto_ols convnext_zepto_rms "
        "convnext_zepto_rms_ols convnextv2_atto convnextv2_femto test_convnext test_convnext2 test_convnext3"
    ),
    "cspnet": "cs3darknet_focus_s cs3darknet_s",
    "cspnext": "cspnext_s cspnext_tiny",
    "densenet": "densenet121 densenetblur121d",
    "dla": "dla46_c dla46x_c dla60x_c",
    "efficientnet": (
        "efficientnet_b0 efficientnet_b0_g8_gn efficientnet_b0_gn efficientnet_b1 efficientnet_b1_pruned "
        "efficientnet_blur_b0 efficientnet_em efficientnet_es efficientnet_es_pruned efficientnet_lite0 "
        "efficientnet_lite1 efficientnet_lite2 fbnetc_100 mixnet_l mixnet_m mixnet_s mnasnet_050 mnasnet_075 "
        "mnasnet_100 mnasnet_140 mnasnet_small mobilenet_edgetpu_100 mobilenet_edgetpu_v2_s "
        "mobilenet_edgetpu_v2_xs mobilenetv1_100 mobilenetv1_100h mobilenetv1_125 mobilenetv2_035 mobilenetv2_050 "
        "mobilenetv2_075 mobilenetv2_100 mobilenetv2_110d mobilenetv2_120d mobilenetv2_140 semnasnet_050 "
        "semnasnet_075 semnasnet_100 semnasnet_140 spnasnet_100 test_efficientnet test_efficientnet_evos "
        "test_efficientnet_gn test_efficientnet_ln tf_efficientnet_b0 tf_efficientnet_b1 tf_efficientnet_em "
        "tf_efficientnet_es tf_efficientnet_lite0 tf_efficientnet_lite1 tf_efficientnet_lite2 "
        "tf_efficientnetv2_b0 tf_mixnet_l tf_mixnet_m tf_mixnet_s tinynet_a tinynet_b tinynet_c tinynet_d "
        "tinynet_e"
    ),
    "fasternet": "fasternet_t0 fasternet_t1",
    "fastvit": "fastvit_t8 fastvit_t12",
    "ghostnet": "ghostnet_050 ghostnet_100 ghostnet_130 ghostnetv2_100 ghostnetv3_050",
    "hardcorenas": "hardcorenas_a hardcorenas_b hardcorenas_c hardcorenas_d",
    "hgnet": "hgnetv2_b0 hgnetv2_b1",
    "inception_next": "inception_next_atto",
    "lcnetv2": "lcnetv2_base lcnetv2_small",
    "mambaout": "mambaout_femto test_mambaout",
    "mobilenetv3": (
        "lcnet_035 lcnet_050 lcnet_075 lcnet_100 lcnet_150 mobilenetv3_large_075 mobilenetv3_large_100 "
        "mobilenetv3_rw mobilenetv3_small_050 mobilenetv3_small_075 mobilenetv3_small_100 mobilenetv4_conv_small "
        "mobilenetv4_conv_small_035 mobilenetv4_conv_small_050 tf_mobilenetv3_large_075 tf_mobilenetv3_large_100 "
        "tf_mobilenetv3_large_minimal_100 tf_mobilenetv3_small_075 tf_mobilenetv3_small_100 "
        "tf_mobilenetv3_small_minimal_100"
    ),
    "nfnet": "test_nfnet",
    "regnet": (
        "regnetx_002 regnetx_004 regnetx_004_tv regnetx_006 regnetx_008 regnety_002 regnety_004 regnety_006 "
        "regnety_008 regnety_008_tv regnetz_005"
    ),
    "repghost": (
        "repghostnet_050 repghostnet_058 repghostnet_080 repghostnet_100 repghostnet_111 repghostnet_130 "
        "repghostnet_150"
    ),
    "repvit": "repvit_m0_9 repvit_m1 repvit_m1_0",
    "resnet": "resnet10t test_resnet",
    "rexnet": "rexnet_100 rexnet_130 rexnetr_100 rexnetr_130",
    "starnet": "starnet_s1 starnet_s2 starnet_s3 starnet_s4 starnet_s050 starnet_s100 starnet_s150",
    "vovnet": "ese_vovnet19b_dw ese_vovnet19b_slim ese_vovnet19b_slim_dw",
}
"""Family -> its names, as timm orders them."""

TIMM = tuple(name for names in TIMM_FAMILIES.values() for name in names.split())

LEFT_OUT: dict[str, tuple[int, str]] = {
    "coat": (2, "attention"),
    "convit": (1, "attention"),
    "cpubone": (2, "attention"),
    "crossvit": (1, "attention"),
    "deit": (2, "attention"),
    "edgenext": (4, "attention"),
    "efficientformer_v2": (2, "attention"),
    "efficientvim": (2, "a state space"),
    "efficientvit_mit": (1, "attention"),
    "efficientvit_msra": (4, "attention"),
    "eva": (5, "attention"),
    "iformer": (2, "attention"),
    "levit": (2, "attention"),
    "maxxvit": (4, "attention"),
    "mlp_mixer": (1, "a learned matrix over all places"),
    "mobilenetv3 (mobilenetv4_hybrid_medium_075)": (1, "attention"),
    "mobilevit": (7, "attention"),
    "pit": (2, "attention"),
    "pvt_v2": (1, "attention"),
    "shvit": (1, "attention"),
    "swiftformer": (2, "attention"),
    "vision_transformer": (6, "attention"),
    "vision_transformer_hybrid": (2, "attention"),
    "vision_transformer_relpos": (1, "attention"),
    "xcit": (8, "attention"),
}
"""Family -> how many names under 8 million parameters are left out, and what they mix places by."""
