# A desk without ROS: calibrate, build, evaluate, replay, and the demo. From a clone:
#   docker build -f docker/desk.Dockerfile -t trt_segmentation .
#   docker run --rm --shm-size=256m trt_segmentation
#   docker run --rm --shm-size=256m -v "$PWD:/data" -w /data trt_segmentation calibrate my_bundle --images drives/
FROM python:3.12-slim-bookworm

# The hashed releases first: they change less often than the package.
COPY constraints/desk-hashes.txt /tmp/
RUN pip install --no-cache-dir --require-hashes -r /tmp/desk-hashes.txt
COPY . /src
RUN pip install --no-cache-dir --no-deps --no-build-isolation /src \
 && useradd --create-home --uid 1000 desk

USER 1000
WORKDIR /home/desk
ENTRYPOINT ["trt-segmentation"]
CMD ["demo"]
