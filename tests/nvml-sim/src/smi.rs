//! The table of `nvidia-smi`, from the library's answers. The library is loaded and called as by any program.

use std::path::Path;

use anyhow::Context;
use nvml_wrapper::{Device, Nvml, enum_wrappers::device::TemperatureSensor, error::NvmlError};

/// Prints the table, or one line per GPU.
pub(crate) fn print(library: &Path, list: bool) -> anyhow::Result<()> {
    let nvml = Nvml::builder()
        .lib_path(library.as_os_str())
        .init()
        .with_context(|| format!("cannot load {}", library.display()))?;
    if list {
        print_list(&nvml)
    } else {
        print_table(&nvml)
    }
}

fn print_list(nvml: &Nvml) -> anyhow::Result<()> {
    for index in 0..nvml.device_count()? {
        match nvml.device_by_index(index) {
            Ok(gpu) => {
                println!("GPU {index}: {} (UUID: {})", gpu.name()?, gpu.uuid()?);
                for slice in slices(&gpu) {
                    println!("  {} (UUID: {})", slice.name()?, slice.uuid()?);
                }
            }
            Err(error) => println!("GPU {index}: {error}"),
        }
    }
    Ok(())
}

fn print_table(nvml: &Nvml) -> anyhow::Result<()> {
    let cuda = nvml.sys_cuda_driver_version()?;
    println!(
        "NVIDIA-SMI (simulated)   Driver Version: {}   CUDA Version: {}.{}",
        nvml.sys_driver_version()?,
        cuda / 1000,
        cuda % 1000 / 10
    );
    println!(
        "{:<4} {:<34} {:<18} {:>5} {:>15} {:>21} {:>6}  UUID",
        "GPU", "Name", "Bus-Id", "Temp", "Power", "Memory", "Util"
    );
    for index in 0..nvml.device_count()? {
        match nvml.device_by_index(index) {
            Ok(gpu) => print_row(index, &gpu)?,
            Err(error) => println!("{index:<4} {error}"),
        }
    }
    Ok(())
}

fn print_row(index: u32, gpu: &Device<'_>) -> anyhow::Result<()> {
    let memory = gpu.memory_info()?;
    let watts = |milliwatts: u32| (milliwatts / 1000).to_string();
    println!(
        "{index:<4} {:<34} {:<18} {:>5} {:>15} {:>21} {:>6}  {}",
        gpu.name()?,
        gpu.pci_info()?.bus_id,
        or_dash(gpu.temperature(TemperatureSensor::Gpu), |c| format!("{c}C")),
        format!(
            "{}W / {}W",
            or_dash(gpu.power_usage(), watts),
            or_dash(gpu.enforced_power_limit(), watts)
        ),
        format!("{}MiB / {}MiB", memory.used >> 20, memory.total >> 20),
        or_dash(gpu.utilization_rates(), |u| format!("{}%", u.gpu)),
        gpu.uuid()?,
    );
    for slice in slices(gpu) {
        println!(
            "     {:<58} {:>43}  {}",
            slice.name()?,
            format!("{}MiB", slice.memory_info()?.total >> 20),
            slice.uuid()?
        );
    }
    for process in gpu.running_compute_processes().unwrap_or_default() {
        println!("     process {} {:?}", process.pid, process.used_gpu_memory);
    }
    Ok(())
}

fn slices<'nvml>(gpu: &Device<'nvml>) -> Vec<Device<'nvml>> {
    let count = gpu.mig_device_count().unwrap_or(0);
    (0..count)
        .filter_map(|index| gpu.mig_device_by_index(index).ok())
        .collect()
}

fn or_dash<T>(answer: Result<T, NvmlError>, show: impl FnOnce(T) -> String) -> String {
    answer.map_or_else(|_| "-".to_owned(), show)
}
