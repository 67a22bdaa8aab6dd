//! Speed, measured: `cargo xtask bench NAME --json` prints a line a metric. Nothing here fails on time.

mod agent;
mod lease;
mod matching;
mod process;
mod report;
mod scale;
mod story;

use clap::{Parser, Subcommand};

use report::Report;

#[derive(Parser)]
#[command(name = "bench", about = "Measures, and prints a line a metric")]
struct Flags {
    #[command(subcommand)]
    bench: Bench,
    /// One JSON object a line
    #[arg(long, global = true)]
    json: bool,
}

#[derive(Subcommand)]
enum Bench {
    /// One lease against 10,000 offered rows
    Match,
    /// Leases on a real node from apply to Active and from deletion to the refund, one after the other
    Lease {
        /// How many
        #[arg(long, default_value_t = 30)]
        leases: usize,
    },
    /// Memory and processor time of an optimized agent with eight GPUs and its default period
    Agent {
        /// For how long, after a minute of settling
        #[arg(long, default_value_t = 120)]
        seconds: u64,
    },
    /// Transactions and gas of the story with three providers
    Story,
    /// Many leases at once on nodes that KWOK plays. Its GpuNodes are written by the bench itself, no agents run:
    /// what is measured is the operators
    Scale(scale::Flags),
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let flags = Flags::parse();
    let report = Report { json: flags.json };
    match flags.bench {
        Bench::Match => {
            matching::run(&report);
            Ok(())
        }
        Bench::Lease { leases } => lease::run(&report, leases).await,
        Bench::Agent { seconds } => agent::run(&report, seconds).await,
        Bench::Story => story::run(&report).await,
        Bench::Scale(flags) => scale::run(&report, &flags).await,
    }
}
