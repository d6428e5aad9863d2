//! Choosing an adapter and opening it. There is one device per adapter and process.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, LazyLock, OnceLock};

use parking_lot::Mutex;

use crate::backend::{Areas, Caps, Fault};
use crate::error::ErrorKind;

use super::ahead::Ahead;
use super::pool::Pool;
use super::tune::Tuner;
use super::{AdapterClass, AdapterInfo, Gpu, codegen, disk};

static ADAPTERS: LazyLock<Vec<wgpu::Adapter>> = LazyLock::new(|| {
    // GL only where there is nothing else: looking for it is slow and noisy.
    let find = |backends: wgpu::Backends| {
        let mut descriptor = wgpu::InstanceDescriptor::new_without_display_handle();
        // Vulkan's own validation layers cost much and are for people who write wgpu.
        descriptor.flags = wgpu::InstanceFlags::empty().with_env();
        descriptor.backends = backends & wgpu::Backends::from_env().unwrap_or(backends);
        pollster::block_on(wgpu::Instance::new(descriptor).enumerate_adapters(backends))
    };
    let mut adapters = find(wgpu::Backends::PRIMARY);
    if adapters.is_empty() {
        adapters = find(wgpu::Backends::SECONDARY);
    }
    adapters.retain(|a| a.get_downlevel_capabilities().flags.contains(wgpu::DownlevelFlags::COMPUTE_SHADERS));
    adapters.sort_by_key(|a| rank(&a.get_info()));
    adapters
});

/// Open devices, with their adapters' positions in [`ADAPTERS`].
static DEVICES: Mutex<Vec<(usize, Arc<Gpu>)>> = Mutex::new(Vec::new());

fn is_software(info: &wgpu::AdapterInfo) -> bool {
    let name = info.name.to_lowercase();
    info.device_type == wgpu::DeviceType::Cpu
        || ["llvmpipe", "swiftshader", "basic render"].iter().any(|n| name.contains(n))
}

/// Better adapters first; of one adapter's drivers, the native one before GL.
fn rank(info: &wgpu::AdapterInfo) -> (u32, bool) {
    let kind = match info.device_type {
        _ if is_software(info) => 4,
        wgpu::DeviceType::DiscreteGpu => 0,
        wgpu::DeviceType::IntegratedGpu => 1,
        wgpu::DeviceType::VirtualGpu => 2,
        wgpu::DeviceType::Other | wgpu::DeviceType::Cpu => 3,
    };
    (kind, info.backend == wgpu::Backend::Gl)
}

fn class(info: &wgpu::AdapterInfo) -> AdapterClass {
    match rank(info).0 {
        4 => AdapterClass::Software,
        0 | 2 => AdapterClass::Discrete,
        _ => AdapterClass::Integrated,
    }
}

/// The class that `WGRAD_CLASS` asks for: another class's kernels run on any adapter, so that those for GPUs can be tested
/// on software ones.
fn class_asked_for() -> Result<Option<AdapterClass>, Fault> {
    let name = std::env::var("WGRAD_CLASS").unwrap_or_default();
    Ok(Some(match name.as_str() {
        "" => return Ok(None),
        "discrete" => AdapterClass::Discrete,
        "integrated" => AdapterClass::Integrated,
        "software" => AdapterClass::Software,
        _ => {
            let message = format!("WGRAD_CLASS is {name:?}, not discrete, integrated or software");
            return Err(Fault { kind: ErrorKind::Device, message, command: None });
        }
    }))
}

/// The names of all adapters, the best first.
pub fn adapters() -> Vec<String> {
    ADAPTERS.iter().map(|a| a.get_info().name).collect()
}

/// Opens the best adapter, or the best whose name contains `name`.
pub fn pick(name: Option<&str>) -> Result<Arc<Gpu>, Fault> {
    let wanted = name.unwrap_or("").to_lowercase();
    let fits = |a: &wgpu::Adapter| a.get_info().name.to_lowercase().contains(&wanted);
    let Some(index) = ADAPTERS.iter().position(fits) else {
        let message = match ADAPTERS.is_empty() {
            true => "no GPU, and no software Vulkan either (Mesa's lavapipe is one)".into(),
            false => format!("no adapter is named like {wanted:?}; there are: {}", adapters().join(", ")),
        };
        return Err(Fault { kind: ErrorKind::Device, message, command: None });
    };
    let mut devices = DEVICES.lock();
    if let Some((_, gpu)) = devices.iter().find(|(i, gpu)| *i == index && !gpu.faults.is_lost()) {
        return Ok(gpu.clone());
    }
    let gpu = Arc::new(open(&ADAPTERS[index])?);
    devices.retain(|(i, _)| *i != index);
    devices.push((index, gpu.clone()));
    Ok(gpu)
}

/// The size of the adapter's matrices of halves that are added up in single precision.
fn matrices(adapter: &wgpu::Adapter) -> Option<usize> {
    use wgpu::CooperativeScalarType::{F16, F32};
    // Elsewhere naga's code for them asks for other pointers than our kernel has.
    let vulkan = adapter.get_info().backend == wgpu::Backend::Vulkan;
    let needed = wgpu::Features::EXPERIMENTAL_COOPERATIVE_MATRIX
        | wgpu::Features::SHADER_F16
        | wgpu::Features::SUBGROUP;
    if !vulkan || !adapter.features().contains(needed) {
        return None;
    }
    let all = adapter.cooperative_matrix_properties();
    let square = all
        .iter()
        .filter(|p| (p.ab_type, p.cr_type) == (F16, F32) && p.m_size == p.n_size && p.m_size == p.k_size);
    square.map(|p| p.m_size as usize).max()
}

/// A device with all that kernels may use.
pub fn request(adapter: &wgpu::Adapter) -> Result<(wgpu::Device, wgpu::Queue), Fault> {
    /// Software drivers crash when several are made at once.
    static ONE: Mutex<()> = Mutex::new(());
    let features = adapter.features()
        & (wgpu::Features::TIMESTAMP_QUERY
            | wgpu::Features::SHADER_F16
            | wgpu::Features::SUBGROUP
            | wgpu::Features::SHADER_INT64
            | wgpu::Features::PIPELINE_CACHE);
    let (experiments, allowed) = match matrices(adapter) {
        // SAFETY: wgpu does not check the loads and stores of cooperative matrices yet; our one kernel with them touches
        // workgroup memory by constant sizes.
        Some(_) => (wgpu::Features::EXPERIMENTAL_COOPERATIVE_MATRIX, unsafe {
            wgpu::ExperimentalFeatures::enabled()
        }),
        None => (wgpu::Features::empty(), wgpu::ExperimentalFeatures::disabled()),
    };
    let descriptor = wgpu::DeviceDescriptor {
        label: Some("wgrad"),
        required_features: features | experiments,
        experimental_features: allowed,
        required_limits: adapter.limits(),
        ..Default::default()
    };
    let _one = ONE.lock();
    pollster::block_on(adapter.request_device(&descriptor)).map_err(|e| Fault {
        kind: ErrorKind::Device,
        message: format!("{} does not open: {e}", adapter.get_info().name),
        command: None,
    })
}

fn open(adapter: &wgpu::Adapter) -> Result<Gpu, Fault> {
    let info = adapter.get_info();
    let (device, queue) = request(adapter)?;
    let features = device.features();
    let faults = Arc::new(Faults::default());
    // Without a handler of ours, wgpu panics.
    let sink = faults.clone();
    device.on_uncaptured_error(Arc::new(move |error| sink.put(from_wgpu(&error))));
    let sink = faults.clone();
    device.set_device_lost_callback(move |reason, message| {
        if reason != wgpu::DeviceLostReason::Destroyed {
            sink.lose(format!("the device is lost: {message}"));
        }
    });

    let limits = device.limits();
    let uniform = info.subgroup_min_size == info.subgroup_max_size;
    let subgroup_size =
        (uniform && features.contains(wgpu::Features::SUBGROUP)).then_some(info.subgroup_min_size);
    let on_cpu = is_software(&info);
    let (class, id) = match class_asked_for()? {
        Some(class) => (class, format!("{}-{class:?}", disk::id(&info))),
        None => (class(&info), disk::id(&info)),
    };
    let pairs = class == AdapterClass::Software && features.contains(wgpu::Features::SHADER_INT64);
    let tuner = Arc::new(Tuner::new(&id));
    let driver = format!("{:?} {} {}", info.backend, info.driver, info.driver_info);
    let info = AdapterInfo {
        name: info.name,
        driver,
        id,
        class,
        on_cpu,
        limits,
        features,
        subgroup_size,
        matrices: matrices(adapter),
        pairs,
        tuner,
    };
    let limits = &info.limits;
    let caps = Caps {
        // One is kept for the status word.
        max_bindings: (limits.max_storage_buffers_per_shader_stage as usize - 1).min(64),
        max_binding_bytes: limits.max_storage_buffer_binding_size.min(limits.max_buffer_size) as usize,
        f16: features.contains(wgpu::Features::SHADER_F16),
        f64: false,
        areas: Areas {
            apart: true,
            align: limits.min_storage_buffer_offset_alignment.max(64) as usize,
            most: (limits.max_storage_buffer_binding_size.min(limits.max_buffer_size) as usize).min(1 << 30),
        },
        split_reduction: codegen::split_for(info.class),
        prologues: Some(codegen::prices(info.class)),
        split_product: crate::ops::matmul::split_for(info.class),
    };
    let pool = Pool::new(device.clone(), queue.clone(), caps.max_binding_bytes as u64);
    let ahead = Ahead::new(adapter);
    let mut gpu = Gpu::new(info, caps, device, queue, faults, pool);
    gpu.pipelines.ahead = ahead;
    Ok(gpu)
}

/// A wgpu error in our words.
pub fn from_wgpu(error: &wgpu::Error) -> Fault {
    let (kind, message) = match error {
        wgpu::Error::OutOfMemory { .. } => {
            (ErrorKind::OutOfMemory, "the device is out of memory".to_string())
        }
        other => (ErrorKind::Backend, other.to_string()),
    };
    Fault { kind, message, command: None }
}

/// What went wrong outside of a call, kept for the next one.
#[derive(Default)]
pub struct Faults {
    first: Mutex<Option<Fault>>,
    lost: OnceLock<String>,
}

impl Faults {
    pub fn put(&self, fault: Fault) {
        self.first.lock().get_or_insert(fault);
    }

    fn lose(&self, message: String) {
        let _ = self.lost.set(message);
    }

    pub fn is_lost(&self) -> bool {
        self.lost.get().is_some()
    }

    /// The first fault since the last call; a lost device stays a fault.
    pub fn take(&self) -> Result<(), Fault> {
        if let Some(message) = self.lost.get() {
            return Err(Fault { kind: ErrorKind::Backend, message: message.clone(), command: None });
        }
        self.first.lock().take().map_or(Ok(()), Err)
    }
}

/// Runs `f`, and returns the error that wgpu met in it.
pub fn scoped<R>(device: &wgpu::Device, f: impl FnOnce() -> R) -> Result<R, Fault> {
    let filters =
        [wgpu::ErrorFilter::OutOfMemory, wgpu::ErrorFilter::Internal, wgpu::ErrorFilter::Validation];
    let [memory, internal, validation] = filters.map(|filter| device.push_error_scope(filter));
    let value = f();
    let mut first = None;
    for scope in [validation, internal, memory] {
        first = pollster::block_on(scope.pop()).or(first);
    }
    match first {
        Some(error) => Err(from_wgpu(&error)),
        None => Ok(value),
    }
}

/// Blocks until a submission is done, or all are.
pub fn wait(device: &wgpu::Device, submission: Option<wgpu::SubmissionIndex>) -> Result<(), Fault> {
    let fault = |message: String| Fault { kind: ErrorKind::Backend, message, command: None };
    let poll = || device.poll(wgpu::PollType::Wait { submission_index: submission, timeout: None });
    // wgpu panics here when the device is lost.
    match catch_unwind(AssertUnwindSafe(poll)) {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(error)) => Err(fault(error.to_string())),
        Err(_) => Err(fault("the device was lost while waiting for it".into())),
    }
}
