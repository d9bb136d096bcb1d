//! Greedy text generation: the prompt once, then a row a token behind its K/V.

use crate::checkpoint::Checkpoint;
use crate::device::{self, Choice};
use crate::models::mllmseg::{Model, Segment, States, prompt, step, write_rows};
use crate::plan::Plan;
use crate::reference::Precision;
use crate::{Error, Result};
use std::sync::Arc;

/// What was generated.
pub struct Generated {
    /// The tokens, the stop token included.
    pub tokens: Vec<u32>,
    /// `(tokens, V)`: the logits that each was chosen from.
    pub logits: Vec<Vec<f32>>,
}

/// Continues `ids` greedily, up to `limit` tokens or a token of `stop`.
///
/// `pixel_values` `(B, 3, S, S)` are the tiles whose features stand at the prompt's `image_token`s, in order.
///
/// # Errors
/// [`Error::Shape`] for a token id that the model has not, an empty prompt, or another number of image tokens than the tiles have.
pub fn greedy(
    checkpoint: &Arc<Checkpoint>,
    ids: &[u32],
    image_token: u32,
    pixel_values: &[f32],
    limit: usize,
    stop: &[u32],
    choice: Choice,
) -> Result<Generated> {
    let (model, weights) = Model::bind(checkpoint)?;
    let (vocab, size) = (model.config.llm_config.vocab_size, model.config.force_image_size);
    let (tiles, per_tile) = (pixel_values.len() / (3 * size * size), model.config.image_tokens());
    if let Some(id) = ids.iter().find(|&&id| id as usize >= vocab) {
        return Err(Error::shape("prompt", format!("token ids below {vocab}"), id.to_string()));
    }
    let mut places = 0;
    let rows: Vec<i32> = ids
        .iter()
        .map(|&id| {
            let image = id == image_token;
            places += i32::from(image);
            if image { -places } else { id as i32 }
        })
        .collect();
    if places as usize != tiles * per_tile || rows.is_empty() {
        let expected = format!("{} image tokens ({per_tile} a tile, {tiles} tiles)", tiles * per_tile);
        return Err(Error::shape("prompt", expected, places.to_string()));
    }
    let mut states = States::default();
    let kv = states.kv_cache(&model.config, rows.len() + limit);
    let mut device = device::open(choice, weights, Precision::F32, &mut |_, _| ())?;
    let (graph, first) = prompt(&model, &mut states, &kv, tiles, rows.len())?;
    let first_plan = Plan::new(graph, device.act_bytes())?;
    let (graph, next) = step(&model, &mut states, &kv)?;
    let next_plan = Plan::new(graph, device.act_bytes())?;
    states.tensors.iter().try_for_each(|t| device.allocate(t))?;

    device.write_f32(&first.pixel_values, pixel_values)?;
    device.write_i32(&first.last, &[rows.len() as i32 - 1])?;
    write_rows(
        device.as_mut(),
        &first.rows,
        &rows,
        &[Segment { rows: (0, rows.len()), seen: [(0, 0); 2], kv: 0 }],
    )?;
    let mut out = Generated { tokens: Vec::new(), logits: Vec::new() };
    let (mut plan, mut token) = (&first_plan, &first.token);
    while out.tokens.len() < limit {
        device.run(plan, true, &mut |i, _, _, values| {
            for tap in plan.graph.taps.iter().filter(|t| t.after == i && t.name == "logits_prev") {
                out.logits.push(values.f32(&tap.value.of)?);
            }
            Ok(())
        })?;
        let id = device.read_i32(token)?[0];
        out.tokens.push(id as u32);
        if stop.contains(&(id as u32)) {
            break;
        }
        let at = rows.len() + out.tokens.len() - 1;
        write_rows(
            device.as_mut(),
            &next.rows,
            &[id],
            &[Segment { rows: (0, 1), seen: [(0, at), (0, 0)], kv: at }],
        )?;
        (plan, token) = (&next_plan, &next.token);
    }
    Ok(out)
}
