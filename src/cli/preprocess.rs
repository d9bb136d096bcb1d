//! `mllmseg preprocess`.

use mllmseg::image::{self, Limits, Rgb};
use mllmseg::{Error, Result};
use safetensors::tensor::{Dtype, TensorView};
use std::path::PathBuf;
use std::process::ExitCode;

/// Write what the model sees of a picture: the 8-bit pixels after decoding and resizing
///
/// The file holds `image`, u8 (S, S, 3). With --tiles it also holds `tiles`, u8 (N, S, S, 3): the views of the
/// dynamic preprocessing that chat uses, row by row, the thumbnail last.
///
/// Example: mllmseg preprocess --image cats.jpg --tiles --out seen.safetensors
#[derive(clap::Args)]
pub struct Args {
    /// Picture: JPEG, PNG, WebP, BMP, TIFF or GIF
    #[arg(long, value_name = "FILE")]
    image: PathBuf,
    /// Side of the square in pixels
    #[arg(long, value_name = "S", default_value_t = 448, value_parser = clap::value_parser!(u16).range(1..=4096))]
    size: u16,
    /// Result, a safetensors file
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// Write the tiles of the dynamic preprocessing as well
    #[arg(long)]
    tiles: bool,
    /// Most tiles, the thumbnail not counted
    #[arg(long, value_name = "N", default_value_t = 12, requires = "tiles", value_parser = clap::value_parser!(u16).range(1..=40))]
    max_tiles: u16,
    /// Turn the picture as its EXIF orientation says (the published preprocessing does not)
    #[arg(long)]
    exif: bool,
}

pub fn run(args: Args) -> Result<ExitCode> {
    let size = usize::from(args.size);
    let source = image::read(&args.image, &Limits::default(), args.exif)?;
    let square = image::resize_bicubic(&source, size, size)?;
    let mut tensors = vec![("image", vec![size, size, 3], square.data)];
    if args.tiles {
        let tiles = image::tiles(&source, 1, args.max_tiles.into(), size, true)?;
        let shape = vec![tiles.len(), size, size, 3];
        tensors.push(("tiles", shape, tiles.into_iter().flat_map(|Rgb { data, .. }| data).collect()));
    }
    let bad = |e: safetensors::SafeTensorError| Error::file(&args.out, "to be written", e.to_string());
    let views = tensors.iter().map(|(name, shape, data)| {
        Ok((*name, TensorView::new(Dtype::U8, shape.clone(), data).map_err(bad)?))
    });
    let bytes = safetensors::serialize(views.collect::<Result<Vec<_>>>()?, None).map_err(bad)?;
    image::write_file(&args.out, &bytes)?;
    Ok(ExitCode::SUCCESS)
}
