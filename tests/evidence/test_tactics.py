import pytest

from nm2trt.evidence import tactic_verdict

SPARSE = [
    "sm80_xmma_fprop_avdt_sparse_int8int8_tilesize64x64x64_stage1_r3s3_u1v1_scalebias_relu",
    "sm80_xmma_fprop_sparse_conv_f16f16_f16f16_f16_nhwckrsc_nhwc_tilesize128x128x64_sptensor16x8x32",
    "sm80_xmma_fprop_sparse_conv_interleaved_i8i8_i8i32_f32_nchw_vect_c_32kcrs_vect_c_32_tilesize128x64x128",
    "sm80_xmma_sparse_gemm_i8i8_i8i32_f32_tn_n_tilesize128x128x128_stage3",
    "sm90_xmma_sparse_gemm_i8i8_i8i32_f32_tn_t_tilesize128x128x128",
    "cutlass_80_tensorop_s16832spgemm_f16_128x128_64x3_nn_align8",
    "ampere_fp16_s16832gemm_sp_fp16_128x128_ldg8_relu_f2f_stages_64x3_nt_v1",
    "ampere_int8_i16864gemm_sp_int8_256x128_ldg16_relu_stages_128x3_nt_v1",
    "sm80_xmma_sparse_gemm_f16f16_f16f32_f32_tt_t_tilesize128x128x64_stage3_warpsize2x2x1_spten",
    "cutlass3x_sm90_sptensorop_s64x128x64spgemm_f16_f16_f32",
    "ampere_sp_fp16_s16832gemm_fp16_128x128",
    "void cutlass::Kernel<cutlass::gemm::kernel::SparseGemm<cutlass::gemm::threadblock::SparseMmaMultistage> >",
]
DENSE = [
    "sm80_xmma_fprop_implicit_gemm_f16f16_f16f16_f16_nhwckrsc_nhwc_tilesize256x64x32_stage3_g1_tensor16x8x16",
    "sm80_xmma_fprop_avdt_dense_int8int8_tilesize64x64x64",
    "ampere_scudnn_128x64_relu_xregs_large_nn_v1",
    "ampere_first_layer_filter3x3_imma_fwd",
    "nvjet_sm121_hsh_mma_128x208x64_2_32x104x64_tmaAB_bz_NNT",
    "trt_turing_cutlass_image_network_first_layer_hmma_fprop_f16f16f32_nhwc_nhwc_k64r7s7c4_stride2x2",
]
UNKNOWN = [
    None,
    "",
    "__myelin_CASK_STUB",
    "__myl_Cast_0xe77d25e5702f56889cded9a92c2e161d",
    # Named after the network's own layers, which may be called sparse.
    "__myl_sparse_encoder_FcAdd_0x12",
    "sparse_embedding_lookup",
    "0x0000000000000461",
    "/sparse/encoder_conv_0x12",
    "sm50_xmma_pooling_tiled_FP32NCHW_kMAX_tP2",
    "CUTENSOR 0x1",
    "cublasLt",
]


@pytest.mark.parametrize("name", SPARSE)
def test_sparse_kernels(name):
    assert tactic_verdict(name) == "sparse"


@pytest.mark.parametrize("name", DENSE)
def test_dense_kernels(name):
    assert tactic_verdict(name) == "dense"


@pytest.mark.parametrize("name", UNKNOWN)
def test_names_that_tell_nothing(name):
    assert tactic_verdict(name) == "unknown"
