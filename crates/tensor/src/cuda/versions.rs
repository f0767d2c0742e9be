//! Which card, driver and compiler go together.

use super::error::GpuError;
use super::gpu::DeviceInfo;

/// What a compiler is: its version, and the architectures that it makes machine code for (90 is sm_90), if it tells.
#[derive(Clone, Debug)]
pub(super) struct CompilerInfo {
    pub(super) version: (i32, i32),
    pub(super) architectures: Vec<u32>,
}

impl CompilerInfo {
    /// "13.0".
    pub(super) fn name(&self) -> String {
        let (major, minor) = self.version;
        format!("{major}.{minor}")
    }
}

/// The architecture to compile for: the card's, or the nearest below of the same major version, whose machine code it runs too.
pub(super) fn architecture(card: &DeviceInfo, compiler: &CompilerInfo) -> Result<String, GpuError> {
    is_new_enough(card)?;
    let (major, minor) = card.capability;
    // Machine code is loaded by every driver of its major version, and by later ones; only PTX would ask for the minor version.
    if compiler.version.0 > card.driver.0 {
        return Err(old_driver(card, compiler, "it is older"));
    }
    let own = 10 * major + minor;
    let runs = |known: &u32| *known / 10 == major && *known <= own;
    let known = &compiler.architectures;
    let found = if known.is_empty() { Some(own) } else { known.iter().copied().filter(runs).max() };
    let old = || GpuError::OldCompiler {
        version: compiler.name(),
        major,
        minor,
        newest: known.iter().copied().max().unwrap_or(0),
    };
    Ok(format!("sm_{}", found.ok_or_else(old)?))
}

/// Whether the kernels can be compiled for a card at all.
pub(super) fn is_new_enough(card: &DeviceInfo) -> Result<(), GpuError> {
    let (major, minor) = card.capability;
    if major < 8 { Err(GpuError::TooOld { name: card.name.clone(), major, minor }) } else { Ok(()) }
}

/// A driver that does not load what a compiler makes, and why.
pub(super) fn old_driver(card: &DeviceInfo, compiler: &CompilerInfo, reason: &str) -> GpuError {
    GpuError::OldDriver {
        driver: card.driver,
        compiler: compiler.name(),
        major: compiler.version.0,
        reason: reason.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn card(capability: (u32, u32), driver: (i32, i32)) -> DeviceInfo {
        let name = "a card".to_owned();
        DeviceInfo { name, memory: 1 << 30, capability, multiprocessors: 1, clock_khz: 1, driver }
    }
    fn compiler(version: (i32, i32), architectures: &[u32]) -> CompilerInfo {
        CompilerInfo { version, architectures: architectures.to_vec() }
    }

    #[test]
    fn a_driver_loads_the_code_of_its_major_version_and_of_earlier_ones() {
        for (driver, version, loads) in [
            ((13, 0), (13, 0), true),
            ((13, 0), (13, 2), true),
            ((13, 0), (12, 9), true),
            ((12, 9), (13, 0), false),
            ((11, 8), (12, 0), false),
        ] {
            let found = architecture(&card((9, 0), driver), &compiler(version, &[80, 90]));
            assert_eq!(found.is_ok(), loads, "{driver:?} {version:?}: {found:?}");
        }
        let old = architecture(&card((9, 0), (12, 4)), &compiler((13, 0), &[90])).unwrap_err().to_string();
        for part in
            ["CUDA 12.4", "NVRTC 13.0", "a driver for CUDA 13", "nvidia-cuda-nvrtc-cu12", "--device cpu"]
        {
            assert!(old.contains(part), "no {part:?} in: {old}");
        }
    }

    #[test]
    fn a_card_runs_what_is_made_for_it_or_for_the_nearest_before_it_of_its_kind() {
        let known = [75, 80, 86, 90, 100];
        for (capability, wanted) in
            [((8, 0), "sm_80"), ((8, 9), "sm_86"), ((9, 0), "sm_90"), ((10, 3), "sm_100")]
        {
            let found = architecture(&card(capability, (13, 0)), &compiler((12, 9), &known));
            assert_eq!(found.as_deref(), Ok(wanted));
        }
        // What does not tell what it knows is asked for the card's.
        let silent = architecture(&card((12, 1), (13, 0)), &compiler((12, 9), &[]));
        assert_eq!(silent.as_deref(), Ok("sm_121"));
        let old = architecture(&card((12, 0), (13, 0)), &compiler((12, 4), &known)).unwrap_err().to_string();
        for part in ["NVRTC 12.4", "12.0", "10.0", "install a newer", "--device cpu"] {
            assert!(old.contains(part), "no {part:?} in: {old}");
        }
        let ancient = architecture(&card((7, 5), (13, 0)), &compiler((12, 4), &known));
        assert!(matches!(ancient, Err(GpuError::TooOld { major: 7, minor: 5, .. })), "{ancient:?}");
    }
}
