//! The flags that every binary has, and their validated form.

use std::net::SocketAddr;

use anyhow::{Context as _, Result};
use tracing_subscriber::EnvFilter;

/// Flags to flatten into a binary's own: `#[command(flatten)] telemetry: leasehold_telemetry::Args`. They are
/// accepted before and after a subcommand.
#[derive(clap::Args, Clone, Debug)]
#[command(next_help_heading = "Telemetry")]
// The group needs a name of its own, because a binary's struct may also be called Args.
#[group(id = "telemetry")]
pub struct Args {
    /// Format of log lines: text for people, json for machines.
    #[arg(
        long,
        global = true,
        value_enum,
        default_value_t,
        env = "LEASEHOLD_LOG_FORMAT"
    )]
    pub log_format: LogFormat,
    /// Log level, or levels by target such as `info,leasehold_operator=debug`.
    #[arg(
        long,
        global = true,
        default_value = "info",
        env = "LEASEHOLD_LOG_FILTER",
        value_name = "FILTER"
    )]
    pub log_filter: String,
    /// Address of /metrics, /healthz and /readyz.
    #[arg(
        long,
        global = true,
        default_value = "127.0.0.1:8080",
        env = "LEASEHOLD_ADMIN_ADDRESS",
        value_name = "ADDRESS"
    )]
    pub admin_address: SocketAddr,
}

/// Flags of binaries that send traces, to flatten beside [`Args`].
#[cfg(feature = "otlp")]
#[derive(clap::Args, Clone, Debug)]
#[command(next_help_heading = "Telemetry")]
#[group(id = "traces")]
pub struct TraceArgs {
    /// URL of an OTLP collector (HTTP, protobuf) for traces, such as `http://collector:4318`. If absent, no traces are
    /// sent.
    #[arg(long, global = true, env = "LEASEHOLD_OTLP_ENDPOINT", value_name = "URL")]
    pub otlp_endpoint: Option<String>,
}

/// Format of log lines.
#[derive(clap::ValueEnum, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LogFormat {
    /// Human-readable text.
    #[default]
    Text,
    /// One JSON object per line.
    Json,
}

/// Validated flags.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Name of the program in traces, such as `leasehold-operator-market`.
    pub service: &'static str,
    /// Format of log lines.
    pub log_format: LogFormat,
    /// Filter for log lines, in the syntax of `EnvFilter`. It is valid.
    pub log_filter: String,
    /// Address of the admin server.
    pub admin_address: SocketAddr,
    /// Base URL of an OTLP collector.
    pub otlp_endpoint: Option<String>,
}

impl Settings {
    /// Validates the flags. `service` is the program's name in traces.
    ///
    /// # Errors
    ///
    /// If the filter is invalid.
    pub fn new(service: &'static str, args: &Args) -> Result<Self> {
        EnvFilter::try_new(&args.log_filter).with_context(|| {
            format!(
                "--log-filter {:?} is invalid: use a level or target=level, such as info",
                args.log_filter
            )
        })?;
        Ok(Self {
            service,
            log_format: args.log_format,
            log_filter: args.log_filter.clone(),
            admin_address: args.admin_address,
            otlp_endpoint: None,
        })
    }

    /// Validates the flags, and enables traces if the flags request them.
    ///
    /// # Errors
    ///
    /// If the endpoint is not an http URL.
    #[cfg(feature = "otlp")]
    pub fn traced(self, args: &TraceArgs) -> Result<Self> {
        let otlp_endpoint = args.otlp_endpoint.clone().filter(|endpoint| !endpoint.is_empty());
        if let Some(endpoint) = &otlp_endpoint {
            anyhow::ensure!(
                endpoint.starts_with("http://") || endpoint.starts_with("https://"),
                "--otlp-endpoint is invalid: use the collector's base URL, such as http://collector:4318"
            );
        }
        Ok(Self {
            otlp_endpoint,
            ..self
        })
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Program {
        #[command(flatten)]
        telemetry: Args,
        #[cfg(feature = "otlp")]
        #[command(flatten)]
        traces: TraceArgs,
    }

    fn settings(flags: &[&str]) -> Result<Settings> {
        let program = Program::try_parse_from([&["program"], flags].concat())?;
        let settings = Settings::new("program", &program.telemetry)?;
        #[cfg(feature = "otlp")]
        let settings = settings.traced(&program.traces)?;
        Ok(settings)
    }

    #[test]
    fn defaults_keep_the_admin_server_on_loopback() {
        let settings = settings(&[]).unwrap();
        assert_eq!(settings.log_format, LogFormat::Text);
        assert!(settings.admin_address.ip().is_loopback());
        assert_eq!(settings.otlp_endpoint, None);
    }

    #[test]
    fn flags_are_accepted_after_a_subcommand() {
        #[derive(Parser)]
        struct Args {
            #[command(subcommand)]
            task: Task,
            #[command(flatten)]
            telemetry: super::Args,
        }
        #[derive(clap::Subcommand)]
        enum Task {
            Serve,
        }
        let program =
            Args::try_parse_from(["program", "serve", "--log-format=json", "--admin-address=[::]:1"])
                .unwrap();
        let Task::Serve = program.task;
        assert_eq!(program.telemetry.log_format, LogFormat::Json);
        assert_eq!(program.telemetry.admin_address.port(), 1);
    }

    #[test]
    fn an_invalid_filter_is_refused_with_its_flag() {
        let error = settings(&["--log-filter", "a=b=c"]).unwrap_err();
        assert!(error.to_string().contains("--log-filter"), "{error}");
    }

    #[cfg(feature = "otlp")]
    #[test]
    fn an_endpoint_without_a_scheme_is_refused() {
        let error = settings(&["--otlp-endpoint", "collector:4318"]).unwrap_err();
        assert!(error.to_string().contains("http://collector:4318"), "{error}");
        assert_eq!(settings(&["--otlp-endpoint", ""]).unwrap().otlp_endpoint, None);
    }
}
