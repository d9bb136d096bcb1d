//! COCO RLE: any size and counts give runs that decode to a mask and mean the same after a round trip, or an error.
#![no_main]

use mllmseg::image::Rle;

libfuzzer_sys::fuzz_target!(|input: (u16, u16, String)| {
    let (h, w, counts) = input;
    if let Ok(rle) = Rle::from_compressed([h.into(), w.into()], &counts) {
        assert_eq!(Rle::from_compressed(rle.size, &rle.to_compressed()).unwrap(), rle);
        if usize::from(h) * usize::from(w) < 1 << 20 {
            let mask = rle.decode().unwrap();
            assert_eq!(rle.area() as usize, mask.area());
            assert_eq!(rle.bbox(), mask.bbox().unwrap_or([0; 4]));
            assert_eq!(Rle::encode(&mask).unwrap().decode().unwrap(), mask);
        }
    }
});
