//! The kernel's request interface for how long a CPU may take to wake up (PM QoS,
//! `Documentation/power/pm_qos_interface.rst`).

use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};

/// What is written to it holds for as long as it is open.
pub const DEVICE: &str = "/dev/cpu_dma_latency";

/// No CPU goes into a sleep that it takes time to wake up from, until this is dropped.
#[derive(Debug)]
pub struct NoDeepSleep {
    _device: File,
}

impl NoDeepSleep {
    /// Asks for it. `EACCES` for who may not (root may), `ENOENT` where the kernel has none.
    pub fn request() -> io::Result<Self> {
        let mut device = OpenOptions::new().write(true).open(DEVICE)?;
        let microseconds = 0_i32;
        device.write_all(&microseconds.to_ne_bytes())?;
        Ok(Self { _device: device })
    }
}
