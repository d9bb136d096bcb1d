//! Polygons of annotations: runs of the picture's size, or an error.
#![no_main]

use mllmseg::image::Rle;

libfuzzer_sys::fuzz_target!(|input: (u8, u8, Vec<f32>)| {
    let (h, w, xy) = input;
    let xy: Vec<f64> = xy.into_iter().map(f64::from).collect();
    let size = [h.into(), w.into()];
    // Outlines of millions of pixels take their time, and are refused past a limit of their own.
    if xy.iter().all(|v| !v.is_finite() || v.abs() < 1e4)
        && let Ok(rle) = Rle::from_polygon(size, &xy)
    {
        let mask = rle.decode().unwrap();
        assert_eq!(rle.area() as usize, mask.area());
        assert_eq!(Rle::union(size, &[rle.clone()]).unwrap().decode().unwrap(), mask);
        assert_eq!(rle.without(&rle).unwrap().area(), 0);
    }
});
