//! Output of the stories: short aligned lines for a terminal, and the same lines without colours for a log.

use std::{
    io::{IsTerminal as _, Write},
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use leasehold_testcluster::Progress;

/// Longer lines of other programs are cut.
const WIDTH: usize = 128;

/// Maximum length of a reason.
const REASON_WIDTH: usize = 400;

/// Prints the lines of a story.
pub struct Console {
    out: Mutex<Box<dyn Write + Send>>,
    colours: bool,
    began: Instant,
}

/// Style of a piece of text.
#[derive(Clone, Copy, Debug)]
enum Style {
    Bold,
    Dim,
    Green,
    Red,
}

impl Style {
    const fn code(self) -> &'static str {
        match self {
            Self::Bold => "1",
            Self::Dim => "2",
            Self::Green => "1;32",
            Self::Red => "1;31",
        }
    }
}

impl Console {
    /// Prints to standard output, in colours if it is a terminal and NO_COLOR is not set.
    #[must_use]
    pub fn terminal() -> Self {
        let colours = std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none();
        Self::to(Box::new(std::io::stdout()), colours)
    }

    /// Prints to standard error, without colours.
    #[must_use]
    pub fn log() -> Self {
        Self::to(Box::new(std::io::stderr()), false)
    }

    fn to(out: Box<dyn Write + Send>, colours: bool) -> Self {
        Self {
            out: Mutex::new(out),
            colours,
            began: Instant::now(),
        }
    }

    /// Time since the console was created.
    #[must_use]
    pub fn elapsed(&self) -> Duration {
        self.began.elapsed()
    }

    fn write(&self, line: &str) {
        let mut out = self.out.lock().unwrap_or_else(PoisonError::into_inner);
        // Continue the story even if nobody reads the output any more.
        let _ = writeln!(out, "{}", line.trim_end());
        let _ = out.flush();
    }

    fn paint(&self, tone: Style, text: &str) -> String {
        if self.colours {
            format!("\x1b[{}m{text}\x1b[0m", tone.code())
        } else {
            text.to_owned()
        }
    }

    /// Prints the title of a section.
    pub fn title(&self, text: &str) {
        self.write("");
        self.write(&self.paint(Style::Bold, text));
        self.write(&self.paint(Style::Dim, &"─".repeat(text.chars().count())));
    }

    /// Prints a sentence.
    pub fn line(&self, text: &str) {
        self.write(&format!("  {text}"));
    }

    /// Prints a command that a user would type.
    pub fn command(&self, text: &str) {
        self.write("");
        self.write(&self.paint(Style::Bold, &format!("  $ {text}")));
    }

    /// Prints an event and its time since the start.
    pub fn at(&self, since: Duration, what: &str, text: &str) {
        let clock = self.paint(Style::Dim, &format!("{:+7.1}s", since.as_secs_f64()));
        self.write(&format!("  {clock}  {what:<14} {text}"));
    }

    /// Prints the output of another program.
    pub fn output(&self, text: &str) {
        for line in text.trim_end().lines() {
            self.write(&format!("    {}", cut(line, WIDTH)));
        }
    }

    /// Prints a table with a caption.
    pub fn table(&self, caption: &str, table: &Table) {
        self.write("");
        self.write(&format!("  {caption}"));
        let mut lines = table.lines().into_iter();
        if let Some(header) = lines.next() {
            self.write(&format!("    {}", self.paint(Style::Dim, &header)));
        }
        for line in lines {
            self.write(&format!("    {line}"));
        }
    }

    /// Prints that the story passed.
    pub fn pass(&self, text: &str) {
        self.write("");
        self.write(&format!("{}  {text}", self.paint(Style::Green, "PASS")));
    }

    /// Prints that the story failed. `reason` is the error with its causes, the outermost first.
    pub fn fail(&self, reason: &anyhow::Error) {
        self.write("");
        let causes: Vec<String> = reason
            .chain()
            .map(ToString::to_string)
            .filter(|c| !c.is_empty())
            .collect();
        let causes = causes.join(": ");
        for (index, line) in causes.lines().enumerate() {
            let head = match index {
                0 => self.paint(Style::Red, "FAIL"),
                _ => "    ".to_owned(),
            };
            self.write(&format!("{head}  {}", cut(line, REASON_WIDTH)));
        }
    }
}

impl Progress for Console {
    fn step(&self, text: &str) {
        let clock = self.paint(
            Style::Dim,
            &format!("{:6.1}s", self.began.elapsed().as_secs_f32()),
        );
        self.write(&format!("  {clock}  {text}"));
    }
}

/// The first characters of a line.
fn cut(line: &str, width: usize) -> String {
    if line.chars().count() <= width {
        return line.to_owned();
    }
    let mut short: String = line.chars().take(width - 1).collect();
    short.push('…');
    short
}

/// Alignment of a column.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Align {
    /// For text.
    Left,
    /// For numbers.
    Right,
}

/// A table of short texts.
pub struct Table {
    columns: Vec<(&'static str, Align)>,
    rows: Vec<Vec<String>>,
}

impl Table {
    /// Creates a table without rows.
    #[must_use]
    pub fn new(columns: &[(&'static str, Align)]) -> Self {
        Self {
            columns: columns.to_vec(),
            rows: Vec::new(),
        }
    }

    /// Adds a row.
    pub fn row<I>(&mut self, cells: I)
    where
        I: IntoIterator,
        I::Item: Into<String>,
    {
        self.rows.push(cells.into_iter().map(Into::into).collect());
    }

    /// The header and the rows, aligned.
    fn lines(&self) -> Vec<String> {
        let header: Vec<String> = self.columns.iter().map(|(name, _)| (*name).to_owned()).collect();
        let all: Vec<&Vec<String>> = std::iter::once(&header).chain(&self.rows).collect();
        let width = |column: usize| {
            let cells = all.iter().filter_map(|row| row.get(column));
            cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
        };
        let widths: Vec<usize> = (0..self.columns.len()).map(width).collect();
        let line = |row: &&Vec<String>| {
            let cells = row
                .iter()
                .zip(&widths)
                .zip(&self.columns)
                .map(|((cell, width), (_, align))| match align {
                    Align::Left => format!("{cell:<width$}"),
                    Align::Right => format!("{cell:>width$}"),
                });
            cells.collect::<Vec<_>>().join("  ").trim_end().to_owned()
        };
        all.iter().map(line).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up() {
        let mut table = Table::new(&[("who", Align::Left), ("gets", Align::Right)]);
        table.row(["payee of fjord-gpu", "1.5"]);
        table.row(["tenant", "−1.5"]);
        assert_eq!(
            table.lines(),
            [
                "who                 gets",
                "payee of fjord-gpu   1.5",
                "tenant              −1.5"
            ]
        );
    }

    #[test]
    fn long_lines_are_cut_at_a_character() {
        assert_eq!(cut("äöüß", 3), "äö…");
        assert_eq!(cut("äöü", 3), "äöü");
    }
}
