import time, resource
from mace.structures.reading import read_sources
from mace.structures.sources import Source
from mace.formats.reading import iterate_frames
t=time.process_time(); n=sum(1 for _ in iterate_frames('/work/tmp/bench/data10k.xyz')); print('frames',n,time.process_time()-t)
t=time.process_time(); f=[]; r=read_sources([Source('/work/tmp/bench/data10k.xyz')],observe=f.append); print('read',time.process_time()-t, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss/1024)
