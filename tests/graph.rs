//! Shapes are checked when an op is built, and activations that live at the same time stay apart.

use mllmseg::Result;
use mllmseg::graph::{DType, Graph, Place, Tensor};
use mllmseg::ops::{self, Epilogue, KvCache, Op, SEGMENT};
use mllmseg::plan::{ALIGN, Plan};
use proptest::prelude::*;

fn t(shape: &[usize]) -> Tensor {
    Tensor::new("x", DType::Act, shape, Place::State(0))
}

fn mask_head(
    stats: &[usize],
    x: &[usize],
    w: &[usize],
    masks: &[usize],
) -> mllmseg::Result<impl ops::Op + use<>> {
    ops::mask_head(&t(&[99]), &t(stats), None, &t(x), &t(w), &t(&[1]), &t(masks))
}

fn preprocess(y: &[usize], lines: &[usize], pictures: &[usize]) -> mllmseg::Result<impl ops::Op + use<>> {
    ops::preprocess(&t(y), &t(lines), &t(&[96]), &t(&[99]), &t(pictures), 2)
}

/// 2 layers, 2 heads, 16 rows, head size 8.
fn kv() -> KvCache {
    KvCache::new(0, 2, 2, 16, 8)
}

fn ok(op: Result<impl Op + 'static>) -> Result<()> {
    op.map(|_| ())
}

/// The name that the error has, empty for none; what is built.
type Case = (&'static str, fn() -> Result<()>);

/// Every constructor: what must be accepted, and each operand in turn with a shape that does not fit, with the name that its error has.
#[test]
fn every_op_checks_its_operands() {
    let cases: &[Case] = &[
        ("", || ok(ops::argmax(&t(&[4]), &t(&[4, 9])))),
        ("argmax x", || ok(ops::argmax(&t(&[4]), &t(&[36])))),
        ("argmax y", || ok(ops::argmax(&t(&[5]), &t(&[4, 9])))),
        ("", || {
            ok(ops::attention(&t(&[6, 8]), &t(&[6, 8]).all(), &t(&[4, 8]).all(), &t(&[4, 8]).all(), 2, 4))
        }),
        ("attention C", || {
            ok(ops::attention(&t(&[6, 8]), &t(&[6, 8]).all(), &t(&[4, 8]).all(), &t(&[4, 8]).all(), 2, 3))
        }),
        ("attention C", || {
            ok(ops::attention(&t(&[6, 8]), &t(&[6, 8]).all(), &t(&[4, 8]).all(), &t(&[4, 8]).all(), 2, 0))
        }),
        ("query rows", || {
            ok(ops::attention(&t(&[6, 8]), &t(&[6, 8]).all(), &t(&[4, 8]).all(), &t(&[4, 8]).all(), 4, 2))
        }),
        ("key rows", || {
            ok(ops::attention(&t(&[6, 8]), &t(&[6, 8]).all(), &t(&[5, 8]).all(), &t(&[5, 8]).all(), 2, 2))
        }),
        ("attention q", || {
            ok(ops::attention(
                &t(&[6, 8]),
                &t(&[6, 9]).cols(0, 7),
                &t(&[4, 8]).all(),
                &t(&[4, 8]).all(),
                2,
                2,
            ))
        }),
        ("attention q rows", || {
            ok(ops::attention(&t(&[6, 8]), &t(&[8, 8]).all(), &t(&[4, 8]).all(), &t(&[4, 8]).all(), 2, 2))
        }),
        ("attention k", || {
            ok(ops::attention(&t(&[6, 8]), &t(&[6, 8]).all(), &t(&[4, 6]).all(), &t(&[4, 8]).all(), 2, 2))
        }),
        ("attention v rows", || {
            ok(ops::attention(&t(&[6, 8]), &t(&[6, 8]).all(), &t(&[4, 8]).all(), &t(&[6, 8]).all(), 2, 2))
        }),
        ("attention v", || {
            ok(ops::attention(&t(&[6, 8]), &t(&[6, 8]).all(), &t(&[4, 8]).all(), &t(&[4, 6]).all(), 2, 2))
        }),
        ("", || ok(ops::attention_ranges(&t(&[3, 32]), &t(&[3, 4, 8]), &kv(), 1, &t(&[1, SEGMENT]), 5))),
        ("attention_ranges q", || {
            ok(ops::attention_ranges(&t(&[3, 32]), &t(&[3, 32]), &kv(), 1, &t(&[1, SEGMENT]), 5))
        }),
        ("attention_ranges y", || {
            ok(ops::attention_ranges(&t(&[3, 31]), &t(&[3, 4, 8]), &kv(), 1, &t(&[1, SEGMENT]), 5))
        }),
        ("attention_ranges head size", || {
            ok(ops::attention_ranges(&t(&[3, 28]), &t(&[3, 4, 7]), &kv(), 1, &t(&[1, SEGMENT]), 5))
        }),
        ("attention_ranges query heads", || {
            ok(ops::attention_ranges(&t(&[3, 24]), &t(&[3, 3, 8]), &kv(), 1, &t(&[1, SEGMENT]), 5))
        }),
        ("attention_ranges segments", || {
            ok(ops::attention_ranges(&t(&[3, 32]), &t(&[3, 4, 8]), &kv(), 1, &t(&[SEGMENT]), 5))
        }),
        ("attention_ranges segment fields", || {
            ok(ops::attention_ranges(&t(&[3, 32]), &t(&[3, 4, 8]), &kv(), 1, &t(&[1, 6]), 5))
        }),
        ("", || ok(ops::conv3x3(&t(&[2, 6, 6]), &t(&[2, 9, 5]), &t(&[4, 3, 3, 5]), &t(&[4]), 3))),
        ("conv3x3 x", || ok(ops::conv3x3(&t(&[2, 6, 6]), &t(&[18, 5]), &t(&[4, 3, 3, 5]), &t(&[4]), 3))),
        ("conv3x3 cells", || {
            ok(ops::conv3x3(&t(&[2, 6, 6]), &t(&[2, 9, 5]), &t(&[4, 3, 3, 5]), &t(&[4]), 4))
        }),
        ("conv3x3 cells", || {
            ok(ops::conv3x3(&t(&[2, 6, 6]), &t(&[2, 9, 5]), &t(&[4, 3, 3, 5]), &t(&[4]), 0))
        }),
        ("conv3x3 w", || ok(ops::conv3x3(&t(&[2, 6, 6]), &t(&[2, 9, 5]), &t(&[4, 5, 3, 3]), &t(&[4]), 3))),
        ("conv3x3 w", || ok(ops::conv3x3(&t(&[2, 6, 6]), &t(&[2, 9, 5]), &t(&[]), &t(&[4]), 3))),
        ("conv3x3 b", || ok(ops::conv3x3(&t(&[2, 6, 6]), &t(&[2, 9, 5]), &t(&[4, 3, 3, 5]), &t(&[5]), 3))),
        ("conv3x3 channels", || {
            ok(ops::conv3x3(&t(&[2, 6, 6]), &t(&[2, 9, 5]), &t(&[5, 3, 3, 5]), &t(&[5]), 3))
        }),
        ("conv3x3 y", || ok(ops::conv3x3(&t(&[2, 9, 4]), &t(&[2, 9, 5]), &t(&[4, 3, 3, 5]), &t(&[4]), 3))),
        ("", || ok(ops::conv5x5(&t(&[2, 7, 7]), &t(&[2, 7, 7]), &t(&[1, 1, 5, 5]), &t(&[1])))),
        ("conv5x5 x", || ok(ops::conv5x5(&t(&[2, 7, 7]), &t(&[2, 49]), &t(&[1, 1, 5, 5]), &t(&[1])))),
        ("conv5x5 y", || ok(ops::conv5x5(&t(&[2, 7, 8]), &t(&[2, 7, 7]), &t(&[1, 1, 5, 5]), &t(&[1])))),
        ("conv5x5 w", || ok(ops::conv5x5(&t(&[2, 7, 7]), &t(&[2, 7, 7]), &t(&[5, 5]), &t(&[1])))),
        ("conv5x5 b", || ok(ops::conv5x5(&t(&[2, 7, 7]), &t(&[2, 7, 7]), &t(&[1, 1, 5, 5]), &t(&[])))),
        ("", || ok(ops::copy(&t(&[4, 8]).cols(2, 3), &t(&[4, 3])))),
        ("copy rows", || ok(ops::copy(&t(&[5, 8]).cols(2, 3), &t(&[4, 3])))),
        ("copy columns", || ok(ops::copy(&t(&[4, 8]).cols(2, 4), &t(&[4, 3])))),
        ("", || ok(ops::drop_cls(&t(&[6, 8]).all(), &t(&[2, 4, 8])))),
        ("drop_cls x", || ok(ops::drop_cls(&t(&[6, 8]).all(), &t(&[8, 8])))),
        ("drop_cls rows", || ok(ops::drop_cls(&t(&[8, 8]).all(), &t(&[2, 4, 8])))),
        ("drop_cls", || ok(ops::drop_cls(&t(&[0, 8]).all(), &t(&[2, 0, 8])))),
        ("drop_cls columns", || ok(ops::drop_cls(&t(&[6, 8]).cols(0, 7), &t(&[2, 4, 8])))),
        ("", || ok(ops::dysample_offset(&t(&[9, 16]), &t(&[9, 16]), &t(&[1, 16, 1, 1])))),
        ("dysample_offset y", || ok(ops::dysample_offset(&t(&[9, 8]), &t(&[9, 16]), &t(&[1, 16, 1, 1])))),
        ("dysample_offset init_pos", || {
            ok(ops::dysample_offset(&t(&[9, 16]), &t(&[9, 16]), &t(&[1, 8, 1, 1])))
        }),
        ("", || ok(ops::dysample(&t(&[36, 4]).all(), &t(&[9, 4]), &t(&[9, 16]), 3, 2))),
        ("dysample x", || ok(ops::dysample(&t(&[36, 4]).all(), &t(&[1, 9, 4]), &t(&[9, 16]), 3, 2))),
        ("dysample rows", || ok(ops::dysample(&t(&[36, 4]).all(), &t(&[9, 4]), &t(&[9, 16]), 2, 2))),
        ("dysample D", || ok(ops::dysample(&t(&[36, 4]).all(), &t(&[9, 4]), &t(&[9, 24]), 3, 3))),
        ("dysample offset", || ok(ops::dysample(&t(&[36, 4]).all(), &t(&[9, 4]), &t(&[9, 8]), 3, 2))),
        ("dysample y rows", || ok(ops::dysample(&t(&[9, 4]).all(), &t(&[9, 4]), &t(&[9, 16]), 3, 2))),
        ("dysample y columns", || ok(ops::dysample(&t(&[36, 5]).all(), &t(&[9, 4]), &t(&[9, 16]), 3, 2))),
        ("", || ok(ops::embed(&t(&[3, 4]), &t(&[3]), &t(&[10, 4]), Some(&t(&[2, 4]))))),
        ("embed y", || ok(ops::embed(&t(&[12]), &t(&[3]), &t(&[10, 4]), None))),
        ("embed ids", || ok(ops::embed(&t(&[3, 4]), &t(&[4]), &t(&[10, 4]), None))),
        ("embed table", || ok(ops::embed(&t(&[3, 4]), &t(&[3]), &t(&[40]), None))),
        ("embed table columns", || ok(ops::embed(&t(&[3, 4]), &t(&[3]), &t(&[10, 5]), None))),
        ("embed image columns", || ok(ops::embed(&t(&[3, 4]), &t(&[3]), &t(&[10, 4]), Some(&t(&[2, 5]))))),
        ("", || ok(ops::gather_rows(&t(&[2, 4]), &t(&[9, 4]), &t(&[2])))),
        ("gather_rows x", || ok(ops::gather_rows(&t(&[2, 4]), &t(&[36]), &t(&[2])))),
        ("gather_rows rows", || ok(ops::gather_rows(&t(&[2, 4]), &t(&[9, 4]), &t(&[2, 1])))),
        ("gather_rows y", || ok(ops::gather_rows(&t(&[3, 4]), &t(&[9, 4]), &t(&[2])))),
        ("", || ok(ops::next_ids(&t(&[3]), &t(&[9])))),
        ("next_ids ids", || ok(ops::next_ids(&t(&[3, 1]), &t(&[9])))),
        ("next_ids tokens", || ok(ops::next_ids(&t(&[3]), &t(&[9, 1])))),
        ("", || ok(ops::layernorm(&t(&[3, 9]).cols(1, 4), &t(&[3, 4]), &t(&[4]), &t(&[4]), 1e-5))),
        ("layernorm rows", || ok(ops::layernorm(&t(&[2, 4]).all(), &t(&[3, 4]), &t(&[4]), &t(&[4]), 1e-5))),
        ("layernorm y width", || {
            ok(ops::layernorm(&t(&[3, 5]).all(), &t(&[3, 4]), &t(&[4]), &t(&[4]), 1e-5))
        }),
        ("layernorm w", || ok(ops::layernorm(&t(&[3, 4]).all(), &t(&[3, 4]), &t(&[5]), &t(&[4]), 1e-5))),
        ("layernorm b", || ok(ops::layernorm(&t(&[3, 4]).all(), &t(&[3, 4]), &t(&[4]), &t(&[1, 4]), 1e-5))),
        ("", || ok(ops::add_layernorm(&t(&[3, 4]), &t(&[3, 4]), &t(&[3, 4]), &t(&[4]), &t(&[4]), 1e-5))),
        ("add_layernorm rows", || {
            ok(ops::add_layernorm(&t(&[4, 4]), &t(&[3, 4]), &t(&[3, 4]), &t(&[4]), &t(&[4]), 1e-5))
        }),
        ("add_layernorm r", || {
            ok(ops::add_layernorm(&t(&[3, 4]), &t(&[3, 4]), &t(&[4]), &t(&[4]), &t(&[4]), 1e-5))
        }),
        ("", || ok(broadcast(&[2, 5, 4], &[3, 5, 4], &[2], &[2, 4]))),
        ("broadcast_add_layernorm x", || ok(broadcast(&[2, 5, 4], &[15, 4], &[2], &[2, 4]))),
        ("broadcast_add_layernorm r", || ok(broadcast(&[2, 5, 4], &[3, 5, 4], &[2], &[2, 5]))),
        ("broadcast_add_layernorm y", || ok(broadcast(&[3, 5, 4], &[3, 5, 4], &[2], &[2, 4]))),
        ("broadcast_add_layernorm image_of", || ok(broadcast(&[2, 5, 4], &[3, 5, 4], &[3], &[2, 4]))),
        ("", || ok(ops::matmul(&t(&[2, 3, 5]), &t(&[6, 4]), &t(&[5, 2, 2])))),
        ("matmul w", || ok(ops::matmul(&t(&[6, 5]), &t(&[6, 4]), &t(&[5, 5])))),
        ("matmul w", || ok(ops::matmul(&t(&[6, 5]), &t(&[6, 4]), &t(&[])))),
        ("matmul y columns", || ok(ops::matmul(&t(&[6, 4]), &t(&[6, 4]), &t(&[5, 4])))),
        ("matmul y rows", || ok(ops::matmul(&t(&[7, 5]), &t(&[6, 4]), &t(&[5, 4])))),
        (
            "matmul b",
            || ok(ops::matmul(&t(&[6, 5]), &t(&[6, 4]), &t(&[5, 4])).and_then(|m| m.bias(&t(&[4])))),
        ),
        ("matmul ls", || ok(then(Epilogue::ScaledResidual(t(&[4]))))),
        ("matmul w3", || ok(then(Epilogue::SiluMul(t(&[4, 5]))))),
        ("", || ok(then(Epilogue::SiluMul(t(&[5, 4]))))),
        ("", || ok(ops::patchify(&t(&[18, 12]), &t(&[2, 3, 6, 6]), 2))),
        ("patchify x", || ok(ops::patchify(&t(&[18, 12]), &t(&[6, 6, 6]), 2))),
        ("patchify H", || ok(ops::patchify(&t(&[18, 12]), &t(&[2, 3, 7, 6]), 2))),
        ("patchify W", || ok(ops::patchify(&t(&[18, 12]), &t(&[2, 3, 6, 7]), 2))),
        ("patchify H", || ok(ops::patchify(&t(&[18, 12]), &t(&[2, 3, 6, 6]), 0))),
        ("patchify y", || ok(ops::patchify(&t(&[18, 4]), &t(&[2, 3, 6, 6]), 2))),
        ("", || ok(ops::pixel_shuffle(&t(&[8, 12]), &t(&[32, 3]), 4))),
        ("pixel_shuffle x", || ok(ops::pixel_shuffle(&t(&[8, 12]), &t(&[96]), 4))),
        ("pixel_shuffle side", || ok(ops::pixel_shuffle(&t(&[8, 12]), &t(&[32, 3]), 3))),
        ("pixel_shuffle rows", || ok(ops::pixel_shuffle(&t(&[8, 12]), &t(&[30, 3]), 4))),
        ("pixel_shuffle y columns", || ok(ops::pixel_shuffle(&t(&[16, 6]), &t(&[32, 3]), 4))),
        ("pixel_shuffle y", || ok(ops::pixel_shuffle(&t(&[9, 12]), &t(&[32, 3]), 4))),
        ("", || ok(mask_head(&[2, 8], &[2, 8, 8], &[1, 1, 5, 5], &[2, 3]))),
        ("", || ok(ops::matmul_argmax(&t(&[3]), &t(&[2, 3, 2]), &t(&[3, 8]), &t(&[70, 8])))),
        ("matmul_argmax depth", || {
            ok(ops::matmul_argmax(&t(&[3]), &t(&[2, 3, 2]), &t(&[3, 8]), &t(&[70, 9])))
        }),
        ("matmul_argmax y", || ok(ops::matmul_argmax(&t(&[4]), &t(&[2, 3, 2]), &t(&[3, 8]), &t(&[70, 8])))),
        ("matmul_argmax partial", || {
            ok(ops::matmul_argmax(&t(&[3]), &t(&[1, 3, 2]), &t(&[3, 8]), &t(&[70, 8])))
        }),
        ("", || ok(ops::shuffle_layernorm(&t(&[8, 12]), &t(&[32, 3]), &t(&[12]), &t(&[12]), 4, 1e-5))),
        ("shuffle_layernorm y", || {
            ok(ops::shuffle_layernorm(&t(&[8, 3]), &t(&[32, 3]), &t(&[12]), &t(&[12]), 4, 1e-5))
        }),
        ("shuffle_layernorm rows", || {
            ok(ops::shuffle_layernorm(&t(&[8, 12]), &t(&[30, 3]), &t(&[12]), &t(&[12]), 4, 1e-5))
        }),
        ("mask_head x", || ok(mask_head(&[2, 8], &[2, 64], &[1, 1, 5, 5], &[2, 3]))),
        ("mask_head width", || ok(mask_head(&[2, 8], &[2, 8, 9], &[1, 1, 5, 5], &[2, 3]))),
        ("mask_head masks", || ok(mask_head(&[2, 8], &[2, 8, 8], &[1, 1, 5, 5], &[3, 3]))),
        ("mask_head stats", || ok(mask_head(&[3, 8], &[2, 8, 8], &[1, 1, 5, 5], &[2, 3]))),
        ("mask_head w", || ok(mask_head(&[2, 8], &[2, 8, 8], &[1, 1, 3, 3], &[2, 3]))),
        ("", || ok(preprocess(&[8, 12], &[5, 4, 3], &[2, 8]))),
        ("preprocess picture fields", || ok(preprocess(&[8, 12], &[5, 4, 3], &[2, 7]))),
        ("preprocess channels", || ok(preprocess(&[8, 12], &[5, 4, 4], &[2, 8]))),
        ("preprocess S", || ok(preprocess(&[8, 12], &[5, 5, 3], &[2, 8]))),
        ("preprocess y", || ok(preprocess(&[7, 12], &[5, 4, 3], &[2, 8]))),
        ("", || ok(ops::rmsnorm(&t(&[3, 4]), &t(&[3, 4]), &t(&[4]), 1e-5))),
        ("rmsnorm x", || ok(ops::rmsnorm(&t(&[3, 4]), &t(&[12]), &t(&[4]), 1e-5))),
        ("rmsnorm y", || ok(ops::rmsnorm(&t(&[4, 3]), &t(&[3, 4]), &t(&[4]), 1e-5))),
        ("rmsnorm w", || ok(ops::rmsnorm(&t(&[3, 4]), &t(&[3, 4]), &t(&[3]), 1e-5))),
        ("", || {
            ok(ops::rope_split(Some(&t(&[3, 4, 8])), &kv(), 0, &t(&[3, 64]), &t(&[3]), &t(&[3]), &t(&[4]), 4))
        }),
        ("rope_split qkv", || {
            ok(ops::rope_split(None, &kv(), 0, &t(&[192]), &t(&[3]), &t(&[3]), &t(&[4]), 4))
        }),
        ("rope_split qkv columns", || {
            ok(ops::rope_split(None, &kv(), 0, &t(&[3, 56]), &t(&[3]), &t(&[3]), &t(&[4]), 4))
        }),
        ("rope_split q ", || {
            ok(ops::rope_split(Some(&t(&[3, 32])), &kv(), 0, &t(&[3, 64]), &t(&[3]), &t(&[3]), &t(&[4]), 4))
        }),
        ("rope_split positions", || {
            ok(ops::rope_split(None, &kv(), 0, &t(&[3, 64]), &t(&[4]), &t(&[3]), &t(&[4]), 4))
        }),
        ("rope_split kv_rows", || {
            ok(ops::rope_split(None, &kv(), 0, &t(&[3, 64]), &t(&[3]), &t(&[2]), &t(&[4]), 4))
        }),
        ("rope_split inv_freq", || {
            ok(ops::rope_split(None, &kv(), 0, &t(&[3, 64]), &t(&[3]), &t(&[3]), &t(&[8]), 4))
        }),
        ("", || ok(attend(&[3, 4, 8], &[3], &[2, 5], &[3, 4, 2, 16]))),
        ("attention_decode q", || ok(attend(&[3, 32], &[3], &[2, 5], &[3, 4, 2, 16]))),
        ("attention_decode seq", || ok(attend(&[3, 4, 8], &[4], &[2, 5], &[3, 4, 2, 16]))),
        ("attention_decode pages", || ok(attend(&[3, 4, 8], &[3], &[10], &[3, 4, 2, 16]))),
        ("attention_decode parts", || ok(attend(&[3, 4, 8], &[3], &[2, 9], &[3, 4, 2, 16]))),
        ("attention_decode query heads", || ok(attend(&[3, 3, 8], &[3], &[2, 5], &[3, 3, 2, 16]))),
        ("attention_decode head size", || ok(attend(&[3, 4, 16], &[3], &[2, 5], &[3, 4, 2, 24]))),
        ("", || ok(rope_paged(&[3, 64], &[3], &[2, 4]))),
        ("rope_split_paged qkv columns", || ok(rope_paged(&[3, 56], &[3], &[2, 4]))),
        ("rope_split_paged seq", || ok(rope_paged(&[3, 64], &[4], &[2, 4]))),
        ("rope_split_paged inv_freq", || ok(rope_paged(&[3, 64], &[3], &[4]))),
        ("", || ok(ops::sample(&t(&[2]), &t(&[2, 33]), &t(&[2, 3]), &t(&[2, 4]), &t(&[2, 2])))),
        ("sample V", || ok(ops::sample(&t(&[2]), &t(&[2, 0]), &t(&[2, 3]), &t(&[2, 4]), &t(&[2, 0])))),
        ("sample token", || ok(ops::sample(&t(&[3]), &t(&[2, 33]), &t(&[2, 3]), &t(&[2, 4]), &t(&[2, 2])))),
        ("sample knobs", || ok(ops::sample(&t(&[2]), &t(&[2, 33]), &t(&[2, 4]), &t(&[2, 4]), &t(&[2, 2])))),
        ("sample draws", || ok(ops::sample(&t(&[2]), &t(&[2, 33]), &t(&[2, 3]), &t(&[2, 3]), &t(&[2, 2])))),
        ("sample seen", || ok(ops::sample(&t(&[2]), &t(&[2, 33]), &t(&[2, 3]), &t(&[2, 4]), &t(&[2, 1])))),
        ("", || ok(ops::sigmoid(&t(&[3, 4]), &t(&[3, 4])))),
        ("sigmoid y", || ok(ops::sigmoid(&t(&[4, 3]), &t(&[3, 4])))),
        ("", || ok(ops::vit_tokens(&t(&[2, 5, 3]), &t(&[8, 3]), &t(&[1, 1, 3]), &t(&[1, 5, 3])))),
        ("vit_tokens y", || ok(ops::vit_tokens(&t(&[10, 3]), &t(&[8, 3]), &t(&[1, 1, 3]), &t(&[1, 5, 3])))),
        ("vit_tokens patches", || {
            ok(ops::vit_tokens(&t(&[2, 5, 3]), &t(&[10, 3]), &t(&[1, 1, 3]), &t(&[1, 5, 3])))
        }),
        ("vit_tokens", || ok(ops::vit_tokens(&t(&[2, 0, 3]), &t(&[0, 3]), &t(&[1, 1, 3]), &t(&[1, 0, 3])))),
        ("vit_tokens class", || ok(ops::vit_tokens(&t(&[2, 5, 3]), &t(&[8, 3]), &t(&[3]), &t(&[1, 5, 3])))),
        ("vit_tokens position", || {
            ok(ops::vit_tokens(&t(&[2, 5, 3]), &t(&[8, 3]), &t(&[1, 1, 3]), &t(&[1, 4, 3])))
        }),
    ];
    for (i, (named, build)) in cases.iter().enumerate() {
        match build() {
            Ok(()) => assert!(named.is_empty(), "case {i}: `{named}` should be refused"),
            Err(e) => {
                let e = e.to_string();
                assert!(!named.is_empty(), "case {i} should be accepted: {e}");
                assert!(
                    e.contains(named) && e.contains("expected") && e.contains("found"),
                    "case {i}, {named}: {e}"
                );
            }
        }
    }
}

fn broadcast(y: &[usize], x: &[usize], image_of: &[usize], r: &[usize]) -> Result<impl Op + use<>> {
    ops::broadcast_add_layernorm(&t(y), &t(x), &t(image_of), &t(r), &t(&[4]), &t(&[4]), 1e-5)
}

/// Attention over pages of two K/V heads of size 8, with a table of `pages`.
fn attend(q: &[usize], seq: &[usize], pages: &[usize], parts: &[usize]) -> Result<impl Op + use<>> {
    let (kv, y) = (ops::KvPages::new(90, 1, 6, 2, 8), t(&[q.iter().product()]));
    ops::attention_decode(&y, &t(parts), &t(q), &kv, 0, &t(seq), &t(seq), &t(pages), 1)
}

fn rope_paged(qkv: &[usize], seq: &[usize], inv_freq: &[usize]) -> Result<impl Op + use<>> {
    let kv = ops::KvPages::new(90, 1, 6, 2, 8);
    ops::rope_split_paged(None, &kv, 0, &t(qkv), &t(seq), &t(seq), &t(&[2, 5]), &t(inv_freq), 4)
}

fn then(epilogue: Epilogue) -> Result<impl Op + use<>> {
    ops::matmul(&t(&[6, 5]), &t(&[6, 4]), &t(&[5, 4])).and_then(|m| m.then(epilogue))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    /// Random chains, branches and in-place steps: no two activations that live at once share a byte, none leaves the arena, and the
    /// arena is never larger than all of them side by side.
    #[test]
    fn live_activations_stay_apart(
        sizes in prop::collection::vec(1usize..600, 1..40),
        picks in prop::collection::vec(any::<(prop::sample::Index, prop::sample::Index, bool)>(), 40),
        act_bytes in prop::sample::select(vec![2usize, 4]),
    ) {
        const C: usize = 4;
        let mut g = Graph::new();
        let source = Tensor::new("in", DType::Act, [1, C], Place::State(0));
        let rows = Tensor::new("rows", DType::I32, [600], Place::State(1));
        let w = Tensor::new("w", DType::Act, [C, C], Place::State(2));
        let more = Tensor::new("more", DType::Act, [600, C], Place::State(3));
        let mut made: Vec<Tensor> = vec![source];
        for (i, (&n, (pick, other, in_place))) in sizes.iter().zip(&picks).enumerate() {
            let x = made[pick.index(made.len())].clone();
            let y = g.act(&format!("a{i}"), [n, C]);
            g.push("gather", ops::gather_rows(&y, &x, &rows.rows(0..n)).unwrap());
            let again = &made[other.index(made.len())];
            if again.shape == y.shape {
                g.push("add", ops::matmul(&y, again, &w).and_then(|m| m.then(Epilogue::Residual)).unwrap());
            } else if *in_place {
                let add = ops::matmul(&y, &more.rows(0..n), &w).and_then(|m| m.then(Epilogue::Residual));
                g.push("add", add.unwrap());
            }
            made.push(y);
        }
        let mut lives: Vec<Option<(usize, usize)>> = vec![None; g.activations.len()];
        for (i, node) in g.nodes.iter().enumerate() {
            for t in node.op.reads().into_iter().chain(node.op.writes()) {
                if let Place::Activation(id) = t.place {
                    lives[id as usize].get_or_insert((i, i)).1 = i;
                }
            }
        }
        let bytes: Vec<usize> = g.activations.iter().map(|t| t.len() * t.dtype.bytes(act_bytes)).collect();
        let plan = Plan::new(g, act_bytes).unwrap();
        let at = |i: usize| plan.offsets[i].unwrap();
        for i in 0..bytes.len() {
            prop_assert!(at(i).is_multiple_of(ALIGN) && at(i) + bytes[i] <= plan.arena_bytes);
            for j in 0..i {
                let ((a, b), (c, d)) = (lives[i].unwrap(), lives[j].unwrap());
                let together = a <= d && c <= b;
                let apart = at(i) + bytes[i] <= at(j) || at(j) + bytes[j] <= at(i);
                prop_assert!(!together || apart, "activations {} and {} share bytes", i, j);
            }
        }
        let side_by_side: usize = bytes.iter().map(|b| b.next_multiple_of(ALIGN)).sum();
        prop_assert!(plan.arena_bytes <= side_by_side);
    }
}

#[test]
fn a_weight_is_never_written() {
    let mut g = Graph::new();
    let w = Tensor::new("w", DType::Bf16, [4, 4], Place::Weight(0));
    g.push("copy", ops::copy(&w.all(), &t(&[4, 4])).unwrap());
    let e = Plan::new(g, 4).err().unwrap().to_string();
    assert!(e.contains("node `copy`") && e.contains("weights only read"), "{e}");
}

/// Names carry their scope; cost, table, dot and JSON agree on what is there.
#[test]
fn a_graph_prints_what_it_holds() {
    let mut g = Graph::new();
    let x = Tensor::new("x", DType::Act, [6, 4], Place::State(0));
    let w = Tensor::new("layers.0.w", DType::Bf16, [5, 4], Place::Weight(0));
    let (y, z) = (g.act("y", [6, 5]), g.act("z", [6, 5]));
    g.push("first", ops::matmul(&y, &x, &w).unwrap());
    g.scope("part.1");
    g.push("second", ops::copy(&z.all(), &y).unwrap());
    assert_eq!(g.nodes[1].name, "part.1.second");
    assert_eq!(g.cost().flops, 2 * 6 * 5 * 4);
    assert_eq!(g.cost().bytes, 2 * (6 * 4 + 5 * 4 + 6 * 5) + 2 * (6 * 5 + 6 * 5));
    assert!(g.table().lines().count() == 3 && g.table().contains("part.1.second"));
    assert!(g.dot().contains("n0 -> n1"));
    let json = g.json();
    assert_eq!((json[0]["flops"].as_u64(), json[1]["op"].as_str()), (Some(240), Some("copy")));
    assert_eq!(json[1]["reads"][0]["shape"], serde_json::json!([6, 5]));
}
