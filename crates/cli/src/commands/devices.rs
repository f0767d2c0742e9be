//! `shoestring devices`: what this machine can compute on, and what is missing.

use anyhow::Result;
use clap::Args;
use serde_json::{Value, json};
use tensor::cuda::DeviceInfo;
use tensor::{Gpu, GpuError};

use crate::output::{json_line, line};

/// What this machine can compute on.
#[derive(Args)]
pub struct Devices {
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
    /// Compile every kernel for an architecture (sm_80, sm_89, sm_90, sm_100, sm_120 …) and print the compiler's report.
    #[arg(long, value_name = "ARCH")]
    compile: Option<String>,
    /// Print all kernels as C++ that runs them on the processor (for `--device emulated:LIBRARY`, see CONTRIBUTING.md).
    #[arg(long, conflicts_with_all = ["json", "compile"])]
    emulator_source: bool,
}

/// Most operations per second on f32, by the cores' count and clock: a multiply-add for each a cycle.
fn ceiling(d: &DeviceInfo) -> f64 {
    let cores = if d.capability == (8, 0) { 64.0 } else { 128.0 };
    f64::from(d.multiprocessors) * cores * 2.0 * f64::from(d.clock_khz) * 1e3
}

fn describe(d: &DeviceInfo) -> Value {
    json!({
        "name": d.name,
        "memory_bytes": d.memory,
        "compute_capability": format!("{}.{}", d.capability.0, d.capability.1),
        "multiprocessors": d.multiprocessors,
        "f32_ceiling_operations_per_second": ceiling(d),
        "driver_cuda_version": format!("{}.{}", d.driver.0, d.driver.1),
    })
}

/// Lists the devices.
pub fn run(a: &Devices) -> Result<()> {
    if a.emulator_source {
        return line(&Gpu::emulator_source());
    }
    if let Some(arch) = &a.compile {
        let files = Gpu::compile_all(arch)?;
        if a.json {
            let files: serde_json::Map<String, Value> =
                files.into_iter().map(|(name, log)| (name.to_owned(), log.into())).collect();
            return json_line(&files);
        }
        for (name, log) in files {
            line(&format!("{name}.cu for {arch}\n{log}"))?;
        }
        return Ok(());
    }
    let (gpus, compiler, products) = (Gpu::list(), Gpu::compiler(), Gpu::library());
    let isa = format!("{:?}", tensor::cpu::simd::isa());
    let threads = tensor::threads::threads();
    if a.json {
        return json_line(&json!({
            "cpu": {"instruction_set": isa, "threads": threads},
            "gpus": gpus.as_ref().map_or(Vec::new(), |list| list.iter().map(describe).collect()),
            "missing": missing(&gpus, &compiler, &products),
            "compiler": compiler.ok(),
            "cublaslt": products.ok(),
        }));
    }
    line(&format!("cpu      {isa}, {threads} threads"))?;
    match &gpus {
        Ok(list) => {
            for (i, d) in list.iter().enumerate() {
                line(&format!(
                    "cuda:{i}   {}, {:.0} GiB, compute capability {}.{}, f32 up to {:.0} TFLOP/s; driver for CUDA {}.{}",
                    d.name,
                    d.memory as f64 / f64::from(1 << 30),
                    d.capability.0,
                    d.capability.1,
                    ceiling(d) / 1e12,
                    d.driver.0,
                    d.driver.1,
                ))?;
                if let Err(e) = d.check() {
                    line(&format!("         {e}"))?;
                }
            }
            if list.is_empty() {
                line("no GPU   the NVIDIA driver lists none")?;
            }
        }
        Err(e) => line(&format!("no GPU   {e}"))?,
    }
    line(&match &compiler {
        Ok(version) => format!("kernels  compiled at first use by NVRTC {version}"),
        Err(e) => format!("kernels  {e}"),
    })?;
    line(&match &products {
        Ok(version) => format!("products cuBLASLt {version} where it gives the same bits"),
        Err(reason) => format!("products our own ({reason})"),
    })
}

/// All that is not there or does not go together, each with what to do about it.
fn missing(
    gpus: &Result<Vec<DeviceInfo>, GpuError>,
    compiler: &Result<String, GpuError>,
    products: &Result<String, &'static str>,
) -> Vec<String> {
    let mut all: Vec<String> =
        gpus.iter().flatten().filter_map(|d| d.check().err()).map(|e| e.to_string()).collect();
    all.extend(gpus.as_ref().err().map(GpuError::to_string));
    all.extend(compiler.as_ref().err().map(GpuError::to_string));
    all.extend(products.as_ref().err().map(|e| (*e).to_owned()));
    all
}
