//! Device numbers as the protocol has them.

/// `new_encode_dev` of linux/kdev_t.h.
pub(super) fn rdev_to_kernel((major, minor): (u32, u32)) -> u32 {
    (minor & 0xff) | (major << 8) | ((minor & !0xff) << 12)
}

/// `new_decode_dev` of linux/kdev_t.h.
pub(super) fn rdev_from_kernel(dev: u32) -> (u32, u32) {
    ((dev & 0xf_ff00) >> 8, (dev & 0xff) | ((dev >> 12) & 0xf_ff00))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn device_numbers_round_trip() {
        for dev in [(0, 0), (1, 3), (8, 1), (259, 70_000), (4095, 0xf_ffff)] {
            assert_eq!(rdev_from_kernel(rdev_to_kernel(dev)), dev);
        }
    }
}
