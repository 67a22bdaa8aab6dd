//! `cargo xtask image`: writes the archives and says what is in them.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use leasehold_tasks::image::{self, Profile};

#[derive(clap::Args)]
pub(crate) struct Images {
    /// Which: operator, agent, gpu-plugin, gpu-job; those of the chart when none is named
    names: Vec<String>,
    /// How the binaries are compiled
    #[arg(long, value_enum, default_value_t)]
    profile: Profile,
    /// Tag of the images
    #[arg(long, default_value = "dev")]
    tag: String,
    /// Folder to write the archives into; images/ in cargo's target directory when absent
    #[arg(long)]
    out: Option<PathBuf>,
    /// Also the images that tests run beside the product: device plugin and example job
    #[arg(long)]
    tests: bool,
}

pub(crate) fn run(images: Images) -> Result<ExitCode> {
    let folder = images.out.unwrap_or_else(image::default_folder);
    let mut names = images.names;
    if names.is_empty() {
        names.extend(image::PRODUCT.iter().map(ToString::to_string));
    }
    if images.tests {
        names.extend(image::TESTS.iter().map(ToString::to_string));
    }
    for archive in image::build(&names, images.profile, &images.tag, &folder)? {
        let mebibytes = archive.path.metadata()?.len() >> 20;
        println!("{}\t{mebibytes} MiB\t{}", archive.name, archive.path.display());
    }
    Ok(ExitCode::SUCCESS)
}
