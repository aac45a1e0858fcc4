//! Long life of the client of the real chain: many steps of a validator against a node over a ledger, through connections
//! that are cut again and again. Neither memory nor open files may grow.
//!
//! ```text
//! cargo run --release --example chain_soak [STEPS]
//! ```

use std::io;
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use assay::chain::Chain;
use assay::chain::account::address;
use assay::chain::ledger::{Ledger, Settings};
use assay::chain::subtensor::{Options, Subtensor};
use assay::chain::wallet::{Access, Keyring};
use assay::clock::{Clock, SystemClock};
use assay::local::rpc::{Devnet, Spec};
use subxt::utils::AccountId32;

const BLOCK_MS: u64 = 8;
const NUM_MINERS: u8 = 16;
/// A connection lives at most so long.
const LIFE: Duration = Duration::from_millis(700);
/// Steps between two settings of weights.
const STEPS_PER_WEIGHTS: u64 = 500;
/// Resident memory may grow so much in the second half, in percent: before that the allocator still fills its arenas, by a part
/// that differs from run to run. What leaks, leaks in both.
const MAX_GROWTH: f64 = 2.5;

fn main() -> ExitCode {
    match run() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            report(&format!("{error:#}"));
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<bool> {
    let steps: u64 = std::env::args().nth(1).map_or(Ok(10_000), |steps| steps.parse()).context("how many steps?")?;
    let dir = tempfile::tempdir()?;
    let (ledger, validator) = subnet(dir.path())?;
    let devnet = Devnet::start(ledger, 0, Spec::V185)?;
    let node = flaky(devnet.address())?;
    let mut keyring = Keyring::new(Access::default());
    keyring.add_file(&validator.file)?;
    let options = Options {
        network: None,
        endpoints: vec![format!("ws://{node}")],
        netuid: 9,
        state_dir: dir.path().join("state"),
    };
    let chain = Subtensor::connect(options, keyring)?;

    let began = Instant::now();
    let tenth = (steps / 10).max(1);
    let mut early = None;
    let mut late = Use::now()?;
    for step in 1..=steps {
        let due = Instant::now() + Duration::from_millis(BLOCK_MS);
        let snapshot = chain.snapshot()?;
        anyhow::ensure!(snapshot.neurons.len() == usize::from(NUM_MINERS) + 1, "step {step} saw another subnet");
        if step % STEPS_PER_WEIGHTS == 0 {
            let weights: Vec<(u16, u16)> = (1..=u16::from(NUM_MINERS)).map(|uid| (uid, uid)).collect();
            chain.set_weights(&validator.hotkey, &weights, 0)?;
        }
        if step % tenth == 0 {
            late = Use::now()?;
            report(&format!("after {step} steps: {late}"));
            if step >= steps / 2 {
                early.get_or_insert(late);
            }
        }
        // Each step sees another block.
        thread::sleep(due.saturating_duration_since(Instant::now()));
    }
    let early = early.unwrap_or(late);
    let growth = 100.0 * (late.kib as f64 / early.kib as f64 - 1.0);
    report(&format!(
        "{} requests in {:.1} s; memory grew by {growth:.1} % in the second half",
        devnet.num_requests(),
        began.elapsed().as_secs_f64()
    ));
    Ok(growth < MAX_GROWTH && late.files <= early.files)
}

#[expect(clippy::print_stdout, reason = "what an example finds out is printed")]
fn report(line: &str) {
    println!("{line}");
}

struct Validator {
    hotkey: String,
    file: std::path::PathBuf,
}

/// A ledger with a validator, whose key lies in a file, and some miners.
fn subnet(dir: &Path) -> Result<(Arc<Ledger>, Validator)> {
    let first_unix_ms = SystemClock.unix_ms() - 500 * BLOCK_MS;
    let settings = Settings { weights_rate_limit: 1, ..Settings::new(1_000, first_unix_ms, BLOCK_MS) };
    let ledger = Ledger::create(&dir.join("ledger.sqlite"), &settings)?;
    // A key for examples, which holds nothing.
    let hotkey = "5EFF3Yp8JjombkBPWtWoougirjGNsuFAaSa7b1z9cb1Hzgkz".to_owned();
    let seed = "0xf86fa6544711a055bcea99b3cfb9bf5fd7ab6ab8ae3615aed210bc0c5d026b1f";
    let account = "0x6081e862ad0d9ca1a70577131ba84087f44157e8c9fa598b8f4ac73a1ee8e022";
    let file = dir.join("validator");
    let text = format!(
        r#"{{"accountId":"{account}","publicKey":"{account}","secretSeed":"{seed}","ss58Address":"{hotkey}"}}"#
    );
    std::fs::write(&file, text)?;
    std::fs::set_permissions(&file, std::os::unix::fs::PermissionsExt::from_mode(0o600))?;
    let uid = ledger.register_at(&hotkey, 1_000)?;
    ledger.set_stake(uid, 50_000_000_000_000)?;
    ledger.set_permit(uid, true)?;
    for miner in 1..=NUM_MINERS {
        let hotkey = address(&AccountId32([miner; 32]));
        ledger.register_at(&hotkey, 1_000)?;
        ledger.commit_at(&hotkey, &[b'x'; 106], 1_100)?;
    }
    Ok((Arc::new(ledger), Validator { hotkey, file }))
}

/// Forwards to a node over connections that live a short while.
fn flaky(node: SocketAddr) -> Result<SocketAddr> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let address = listener.local_addr()?;
    thread::spawn(move || {
        for client in listener.incoming().flatten() {
            thread::spawn(move || forward(&client, node).ok());
        }
    });
    Ok(address)
}

fn forward(client: &TcpStream, node: SocketAddr) -> io::Result<()> {
    let node = TcpStream::connect(node)?;
    client.set_nodelay(true)?;
    node.set_nodelay(true)?;
    let pump = |from: &TcpStream, to: &TcpStream| -> io::Result<_> {
        let (mut from, mut to) = (from.try_clone()?, to.try_clone()?);
        Ok(thread::spawn(move || io::copy(&mut from, &mut to).ok()))
    };
    let pumps = [pump(client, &node)?, pump(&node, client)?];
    thread::sleep(LIFE);
    for stream in [client, &node] {
        stream.shutdown(Shutdown::Both).ok();
    }
    for pump in pumps {
        pump.join().ok();
    }
    Ok(())
}

/// What the process holds.
#[derive(Clone, Copy)]
struct Use {
    /// Resident memory.
    kib: u64,
    /// Open files, but for those of connections that end at this moment.
    files: usize,
}

impl Use {
    fn now() -> Result<Self> {
        // The connections of before have ended.
        thread::sleep(LIFE * 2);
        let status = std::fs::read_to_string("/proc/self/status")?;
        let kib = status.lines().find_map(|line| line.strip_prefix("VmRSS:")?.trim().strip_suffix(" kB")?.parse().ok());
        let files = std::fs::read_dir("/proc/self/fd")?.count();
        Ok(Self { kib: kib.context("no resident memory in /proc/self/status")?, files })
    }
}

impl std::fmt::Display for Use {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "{:.1} MiB resident, {} open files", self.kib as f64 / 1024.0, self.files)
    }
}
