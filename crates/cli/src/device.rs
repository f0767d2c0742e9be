//! Which device does the work: the processor, or one GPU.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use anyhow::{Result, bail};
use clap::ValueEnum;
use tensor::{Gpu, GpuError, Math};

use crate::output::tell;

/// What `--device` names.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Device {
    /// A GPU if one can be used, else the processor.
    #[default]
    Auto,
    /// The processor.
    Cpu,
    /// The GPU of a number.
    Cuda(usize),
    /// The kernels compiled for the processor, to test them (see CONTRIBUTING.md).
    Emulated(PathBuf),
}

impl FromStr for Device {
    type Err = String;
    fn from_str(text: &str) -> std::result::Result<Device, String> {
        let wrong = || format!("{text:?} is no device: name cpu, cuda, cuda:N or auto");
        match text.split_once(':') {
            None if text == "auto" => Ok(Device::Auto),
            None if text == "cpu" => Ok(Device::Cpu),
            None if text == "cuda" => Ok(Device::Cuda(0)),
            Some(("cuda", n)) => n.parse().map(Device::Cuda).map_err(|_| wrong()),
            Some(("emulated", library)) => Ok(Device::Emulated(library.into())),
            _ => Err(wrong()),
        }
    }
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Device::Auto => write!(f, "auto"),
            Device::Cpu => write!(f, "cpu"),
            Device::Cuda(n) => write!(f, "cuda:{n}"),
            Device::Emulated(library) => write!(f, "emulated:{}", library.display()),
        }
    }
}

impl Device {
    /// Makes it the device of this process. Where one was to be found, a line says which; a machine without NVIDIA's
    /// driver says nothing, since nobody expects a GPU there.
    pub fn set(&self, math: Option<Math>) -> Result<()> {
        let announce = || tell("compiling the GPU's kernels, once for this version and card ...");
        let gpu = match self {
            Device::Cpu => None,
            Device::Cuda(n) => Some(Gpu::open(*n, announce)?),
            Device::Emulated(library) => Some(Gpu::emulated(library)?),
            Device::Auto => match Gpu::open(0, announce) {
                Ok(gpu) => Some(gpu),
                Err(GpuError::NoDriver) => None,
                Err(e) => {
                    tell(&format!("running on the processor: {e}"));
                    None
                }
            },
        };
        if gpu.is_none() && math == Some(Math::Fast) {
            bail!("--math fast needs a GPU: the processor calculates exactly");
        }
        if let Some(gpu) = gpu {
            let named = *self != Device::Auto;
            if !named {
                tell(&format!("running on {} (--device cpu for the processor)", gpu.info().name));
            }
            tensor::set_device(gpu, math, named);
        }
        Ok(())
    }
}

/// What `--math` names.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum MathArg {
    /// f32 in the processor's order: the same bits on every device
    Exact,
    /// bf16 factors and f32 sums on a GPU's tensor cores
    Fast,
}

impl From<MathArg> for Math {
    fn from(arg: MathArg) -> Math {
        match arg {
            MathArg::Exact => Math::Exact,
            MathArg::Fast => Math::Fast,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_devices() {
        assert_eq!("cuda:3".parse(), Ok(Device::Cuda(3)));
        assert_eq!("auto".parse(), Ok(Device::Auto));
        for wrong in ["gpu", "cuda:", "cuda:-1", "cpu:0", ""] {
            assert!(wrong.parse::<Device>().is_err(), "{wrong}");
        }
    }
}
