//! An agent's machine as a part of a state: cheap to copy, and to tell from another one.

use std::hash::{DefaultHasher, Hasher};
use std::io;
use std::sync::{Arc, OnceLock};

use super::super::super::Machine;

/// The machine of an agent, copied only where it changes.
#[derive(Clone, Debug)]
pub struct Agent(Arc<(Machine, OnceLock<u64>)>);

impl Agent {
    /// One that has not started.
    pub fn new() -> Agent {
        Agent(Arc::new((Machine::new(), OnceLock::new())))
    }

    /// The machine.
    pub fn machine(&self) -> &Machine {
        &self.0.0
    }

    /// The machine, to be changed.
    pub fn machine_mut(&mut self) -> &mut Machine {
        if Arc::get_mut(&mut self.0).is_none() {
            self.0 = Arc::new((self.0.0.clone(), OnceLock::new()));
        }
        let inner = Arc::get_mut(&mut self.0).expect("nobody else has it");
        inner.1 = OnceLock::new();
        &mut inner.0
    }

    /// Its hash.
    pub fn print(&self) -> u64 {
        *self.0.1.get_or_init(|| {
            // All that changes here.
            let m = &self.0.0;
            print(&(
                m.now,
                m.incarnation,
                &m.servers,
                &m.cluster,
                &m.clearing,
                m.repair_at,
                &m.vips,
                &m.assigned,
                &m.removing,
            ))
        })
    }
}

impl PartialEq for Agent {
    fn eq(&self, other: &Agent) -> bool {
        Arc::ptr_eq(&self.0, &other.0) || self.0.0 == other.0.0
    }
}

/// A hash of what can be written.
pub fn print(value: &impl serde::Serialize) -> u64 {
    let mut writer = HashWriter(DefaultHasher::new());
    serde_json::to_writer(&mut writer, value).expect("it can be written");
    writer.0.finish()
}

struct HashWriter(DefaultHasher);

impl io::Write for HashWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
