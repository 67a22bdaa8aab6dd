//! `cargo xtask bench mutants`: changes the planner in each way that cargo-mutants knows, one at a time, and counts the
//! changes that a test notices. The planner's own tests run first, and the simulator against what they miss.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::{Command, ExitCode, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use clap::Parser as _;
use leasehold_testtools::{Stderr, cargo, command, hash, root};

/// Mutants that are known to survive, each with the reason.
const SURVIVORS: &str = "planner/surviving_mutants.txt";

#[derive(clap::Parser)]
#[command(name = "cargo xtask bench mutants --")]
struct Flags {
    /// Mutants of one shard; a shard is recorded when it is complete, and is not repeated for the same sources
    #[arg(long, default_value_t = 15, value_parser = clap::value_parser!(u32).range(1..))]
    shard_size: u32,
    /// Begin no further shard after so many minutes
    #[arg(long)]
    minutes: Option<u64>,
    /// Only mutants in lines that this unified diff changes
    #[arg(long)]
    in_diff: Option<PathBuf>,
    /// Fail when fewer percent of the viable mutants are caught
    #[arg(long, default_value_t = 0)]
    at_least: u32,
}

/// What became of one mutant, in the order in which a result file lists them.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Outcome {
    /// It does not compile.
    Unviable,
    /// The planner's tests noticed it, by a failure or by not ending.
    CaughtByTests,
    /// Only the simulator noticed it.
    CaughtBySimulator,
    /// Nothing noticed it.
    Missed,
}

impl Outcome {
    const ALL: [Self; 4] = [
        Self::Unviable,
        Self::CaughtByTests,
        Self::CaughtBySimulator,
        Self::Missed,
    ];

    const fn as_str(self) -> &'static str {
        match self {
            Self::Unviable => "unviable",
            Self::CaughtByTests => "caught-by-tests",
            Self::CaughtBySimulator => "caught-by-simulator",
            Self::Missed => "missed",
        }
    }
}

/// Mutants with their outcomes.
type Results = Vec<(Outcome, String)>;

pub(crate) fn run(flags: &[String], json: bool) -> Result<ExitCode> {
    let arguments = std::iter::once("mutants").chain(flags.iter().map(String::as_str));
    let flags = Flags::parse_from(arguments);
    let tool = cargo::tool("cargo-mutants", &Stderr::default())?;
    let folder = cargo::target_folder().join("mutants");
    let bench = Mutants {
        tool,
        source: folder.join("source"),
        target: folder.join("target"),
        in_diff: flags.in_diff.as_deref().map(fs::canonicalize).transpose()?,
    };
    let results_of = folder.join("results").join(bench.sources()?);
    bench.copy_sources()?;
    let all = bench.list()?;
    let shards = u32::try_from(all.len())?.div_ceil(flags.shard_size);
    let begun = Instant::now();
    let limit = flags.minutes.map(|minutes| Duration::from_secs(60 * minutes));

    let mut results = Results::new();
    let mut left = 0;
    for shard in 0..shards {
        let place = results_of.join(format!("{shard}-of-{shards}"));
        let recorded = place.join("results.tsv");
        if !recorded.exists() {
            if limit.is_some_and(|limit| begun.elapsed() > limit) {
                left += 1;
                continue;
            }
            eprintln!("shard {} of {shards}, {} s", shard + 1, begun.elapsed().as_secs());
            record(
                &recorded,
                &bench.run_shard(&place, &format!("{shard}/{shards}"), &all)?,
            )?;
        }
        results.extend(read(&recorded)?);
    }
    if left > 0 {
        eprintln!(
            "NOT RUN: {left} of {shards} shards, as the time is over; the same command continues with them"
        );
    }
    report(&results, flags.at_least, json)
}

/// What every shard needs.
struct Mutants {
    /// The program cargo-mutants.
    tool: PathBuf,
    /// A copy of the sources, in which the mutants are made.
    source: PathBuf,
    /// Where cargo builds the copy.
    target: PathBuf,
    /// The diff that limits the mutants.
    in_diff: Option<PathBuf>,
}

impl Mutants {
    /// A name for the sources that decide the result: the planner, its dependencies, its tests, and the diff.
    fn sources(&self) -> Result<String> {
        let mut files = Vec::new();
        for source in ["Cargo.lock", "crds", "planner", "tests/simulator"] {
            walk(&root().join(source), &mut files)?;
        }
        files.extend(self.in_diff.clone());
        files.sort_unstable();
        let mut contents = Vec::new();
        for file in &files {
            contents.push(file.as_os_str().as_encoded_bytes().to_vec());
            contents.push(fs::read(file).with_context(|| format!("read {}", file.display()))?);
        }
        let contents: Vec<&[u8]> = contents.iter().map(Vec::as_slice).collect();
        Ok(hash(&contents))
    }

    /// Copies the checkout. One place for all shards lets cargo keep what it built for the one before, and an interrupted
    /// run leaves no mutant in the checkout.
    fn copy_sources(&self) -> Result<()> {
        if self.source.exists() {
            fs::remove_dir_all(&self.source).with_context(|| format!("remove {}", self.source.display()))?;
        }
        let mut files = Vec::new();
        walk(&root(), &mut files)?;
        for file in files {
            let copy = self.source.join(file.strip_prefix(root())?);
            if let Some(folder) = copy.parent() {
                fs::create_dir_all(folder)?;
            }
            fs::copy(&file, &copy).with_context(|| format!("copy {}", file.display()))?;
        }
        Ok(())
    }

    /// The tool, to be run in the copy.
    fn command(&self) -> Command {
        let mut mutants = Command::new(&self.tool);
        mutants
            .args(["mutants", "--package", "leasehold-planner", "--in-place"])
            .args(["--baseline", "skip", "--timeout", "300", "--colors", "never"])
            .current_dir(&self.source)
            .env("CARGO_TARGET_DIR", &self.target)
            // What one mutant fails on must not be tried first on the next: each is to be caught by the tests as they are.
            .env("PROPTEST_DISABLE_FAILURE_PERSISTENCE", "true");
        if let Some(diff) = &self.in_diff {
            mutants.arg("--in-diff").arg(diff);
        }
        mutants
    }

    /// Every mutant.
    fn list(&self) -> Result<Vec<String>> {
        let printed = command::run(self.command().arg("--list"))?;
        Ok(printed.lines().map(str::to_owned).collect())
    }

    /// Tests the mutants of one shard: with the planner's tests, then what they miss with the simulator. `place` gets the
    /// logs, `shard` is `k/n`.
    fn run_shard(&self, place: &Path, shard: &str, all: &[String]) -> Result<Results> {
        let (of_tests, of_simulator) = (place.join("tests"), place.join("simulator"));
        let mut results = Results::new();
        let mut add = |outcome, names: &BTreeSet<String>| {
            results.extend(names.iter().map(|name| (outcome, name.clone())));
        };

        let mut tests = self.command();
        tests.args(["--shard", shard, "--sharding", "round-robin"]);
        tests.args(["--test-package", "leasehold-planner"]);
        test(&mut tests, &of_tests, &["--lib", "--tests"])?;
        let of = |stage: &Path, outcome: &str| lines(&stage.join("mutants.out").join(outcome));
        let missed = of(&of_tests, "missed.txt")?;
        add(Outcome::Unviable, &of(&of_tests, "unviable.txt")?);
        add(Outcome::CaughtByTests, &of(&of_tests, "caught.txt")?);
        add(Outcome::CaughtByTests, &of(&of_tests, "timeout.txt")?);
        if missed.is_empty() {
            return Ok(results);
        }

        // The tool can't be told which mutants to test, but it can be told which it caught before.
        let others = all.iter().filter(|mutant| !missed.contains(*mutant));
        let others: String = others.map(|mutant| format!("{mutant}\n")).collect();
        fs::create_dir_all(of_simulator.join("mutants.out"))?;
        fs::write(of_simulator.join("mutants.out/caught.txt"), others)?;
        let mut simulator = self.command();
        simulator.args(["--iterate", "--test-package", "leasehold-simulator"]);
        test(
            &mut simulator,
            &of_simulator,
            &["--test", "seeds", "--test", "findings"],
        )?;
        let still_missed = of(&of_simulator, "missed.txt")?;
        let caught = missed.difference(&still_missed).cloned().collect();
        add(Outcome::CaughtBySimulator, &caught);
        add(Outcome::Missed, &still_missed);
        Ok(results)
    }
}

/// Runs cargo-mutants with arguments of cargo test. It ends with 2 when a mutant is missed and with 3 when one does not end.
fn test(mutants: &mut Command, output: &Path, cargo_test: &[&str]) -> Result<()> {
    fs::create_dir_all(output)?;
    mutants.arg("--output").arg(output).arg("--").args(cargo_test);
    let status = mutants
        .stdin(Stdio::null())
        .stdout(std::io::stderr())
        .status()
        .context("start cargo-mutants")?;
    ensure!(
        matches!(status.code(), Some(0 | 2 | 3)),
        "cargo-mutants ended with {status}"
    );
    Ok(())
}

/// Every file at or below a path, without what is built or downloaded.
fn walk(path: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    if !path.is_dir() {
        files.push(path.to_owned());
        return Ok(());
    }
    for entry in fs::read_dir(path).with_context(|| format!("read {}", path.display()))? {
        let entry = entry?;
        let built = ["target", ".git", "node_modules"]
            .iter()
            .any(|name| entry.file_name() == *name);
        if !built && !entry.file_type()?.is_symlink() {
            walk(&entry.path(), files)?;
        }
    }
    Ok(())
}

/// The lines of a file, none when there is no file.
fn lines(path: &Path) -> Result<BTreeSet<String>> {
    if !path.exists() {
        return Ok(BTreeSet::new());
    }
    let text = fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
    Ok(text.lines().map(str::to_owned).collect())
}

fn record(path: &Path, results: &Results) -> Result<()> {
    let text: String = results
        .iter()
        .map(|(outcome, mutant)| format!("{}\t{mutant}\n", outcome.as_str()))
        .collect();
    // Complete or not there.
    let draft = path.with_extension("draft");
    fs::write(&draft, text)?;
    fs::rename(&draft, path).with_context(|| format!("write {}", path.display()))
}

fn read(path: &Path) -> Result<Results> {
    let text = fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
    text.lines()
        .map(|line| {
            let parts = line.split_once('\t').and_then(|(outcome, mutant)| {
                let outcome = Outcome::ALL.into_iter().find(|o| o.as_str() == outcome)?;
                Some((outcome, mutant.to_owned()))
            });
            parts.with_context(|| format!("{}: not a result: {line}", path.display()))
        })
        .collect()
}

/// The name of a mutant without its line and column, which change with every edit above it.
fn without_position(mutant: &str) -> String {
    let mut parts = mutant.splitn(4, ':');
    match (parts.next(), parts.next(), parts.next(), parts.next()) {
        (Some(file), Some(_), Some(_), Some(change)) => format!("{file}:{change}"),
        _ => mutant.to_owned(),
    }
}

/// Prints the figures, and every survivor that the list does not explain.
fn report(results: &Results, at_least: u32, json: bool) -> Result<ExitCode> {
    let count = |outcome| results.iter().filter(|(o, _)| *o == outcome).count();
    let missed = count(Outcome::Missed);
    let by_tests = count(Outcome::CaughtByTests);
    let by_simulator = count(Outcome::CaughtBySimulator);
    let caught = by_tests + by_simulator;
    let viable = caught + missed;
    let list = fs::read_to_string(root().join(SURVIVORS)).with_context(|| format!("read {SURVIVORS}"))?;
    let explained: BTreeSet<&str> = list
        .lines()
        .filter_map(|line| line.split_once(" # ").map(|(mutant, _)| mutant.trim()))
        .collect();
    let mut unexplained = 0;
    for (_, mutant) in results.iter().filter(|(outcome, _)| *outcome == Outcome::Missed) {
        if !explained.contains(without_position(mutant).as_str()) {
            eprintln!("survives: {mutant}");
            unexplained += 1;
        }
    }
    for (metric, value) in [
        ("mutants.planner.viable", viable),
        ("mutants.planner.caught_by_tests", by_tests),
        ("mutants.planner.caught_by_simulator", by_simulator),
        ("mutants.planner.missed", missed),
        ("mutants.planner.missed_without_explanation", unexplained),
    ] {
        print_metric(metric, &value.to_string(), "", viable, json);
    }
    if viable == 0 {
        return Ok(ExitCode::SUCCESS);
    }
    let percent = 100.0 * f64::from(u32::try_from(caught)?) / f64::from(u32::try_from(viable)?);
    print_metric(
        "mutants.planner.caught",
        &format!("{percent:.1}"),
        "%",
        viable,
        json,
    );
    if percent < f64::from(at_least) {
        eprintln!(
            "FAIL  {percent:.1} % of the mutants are caught, {at_least} % are required: add tests for the survivors"
        );
        return Ok(ExitCode::FAILURE);
    }
    Ok(ExitCode::SUCCESS)
}

fn print_metric(metric: &str, value: &str, unit: &str, n: usize, json: bool) {
    if json {
        println!(r#"{{"metric":"{metric}","value":{value},"unit":"{unit}","n":{n}}}"#);
    } else {
        println!("{metric:<50} {value} {unit}");
    }
}
