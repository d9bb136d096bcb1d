//! `[class ; patches] + position`. Source: `InternVisionEmbeddings.forward`.

use rayon::prelude::*;

/// `y` `(B, 1+N, C)`, `patches` `(B*N, C)`, `class` `(C)`, `position` `(1+N, C)`.
pub fn vit_tokens(y: &mut [f32], patches: &[f32], class: &[f32], position: &[f32]) {
    let (c, tokens) = (class.len(), position.len() / class.len());
    y.par_chunks_exact_mut(c).enumerate().for_each(|(i, y)| {
        let (b, t) = (i / tokens, i % tokens);
        let x = if t == 0 { class } else { &patches[(b * (tokens - 1) + t - 1) * c..][..c] };
        let p = &position[t * c..][..c];
        for j in 0..c {
            y[j] = x[j] + p[j];
        }
    });
}
